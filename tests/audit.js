/* What a page is held to by tests/test_report_browser.py: an object of functions that list faults. */
({
  /* Visible text whose contrast with what lies behind it is below 4.5, of large text 3 (WCAG 2.2,
     1.4.3). */
  faint() {
    const parse = (c) => {
      const n = c.match(/[\d.]+/g).map(Number), unit = c.startsWith("color(") ? 1 : 255;
      return [...n.slice(0, 3).map((v) => v / unit), n[3] ?? 1];
    };
    const over = (top, below) =>
      [0, 1, 2].map((i) => top[3] * top[i] + (1 - top[3]) * below[i]).concat(1);
    const behind = (e) => {
      const layers = [];
      for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
      return layers.reverse().reduce((below, top) => over(top, below), [1, 1, 1, 1]);
    };
    const luminance = (c) => {
      const [r, g, b] = c.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const found = new Set();
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walk.nextNode()) {
      const e = walk.currentNode.parentElement;
      if (!walk.currentNode.data.trim() || e.closest("script, .unseen")) continue;
      if (!e.checkVisibility()) continue;
      const style = getComputedStyle(e), back = behind(e), ink = over(parse(style.color), back);
      const [light, dark] = [luminance(ink), luminance(back)].sort((p, q) => q - p);
      const ratio = (light + 0.05) / (dark + 0.05), size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if (ratio < (large ? 3 : 4.5)) {
        found.add(`${ratio.toFixed(2)} ${e.tagName} ${e.className}: ${e.textContent}`);
      }
    }
    return [...found];
  },

  /* Ids, references, headings, tables, images, targets and sliders. */
  problems() {
    const all = (query) => [...document.querySelectorAll(query)], found = [];
    const ids = all("[id]").map((e) => e.id);
    if (new Set(ids).size < ids.length) found.push("an id stands twice");
    for (const name of ["aria-labelledby", "aria-describedby"]) {
      for (const e of all(`[${name}]`)) {
        if (!ids.includes(e.getAttribute(name))) found.push(`${name} leads nowhere`);
      }
    }
    for (const a of all('a[href^="#"]')) {
      if (!ids.includes(a.hash.slice(1))) found.push(`${a.hash} leads nowhere`);
    }
    let level = 0;
    for (const h of all("h1, h2, h3")) {
      if (Number(h.tagName[1]) > level + 1) found.push(`a level is skipped: ${h.textContent}`);
      level = Number(h.tagName[1]);
    }
    for (const th of all("th")) if (!th.scope) found.push(`no scope: ${th.textContent}`);
    for (const img of all("img")) if (!img.alt) found.push("an image without words");
    for (const b of all("button").filter((e) => e.checkVisibility())) {
      if (b.getBoundingClientRect().height < 24) found.push(`small: ${b.textContent}`);
    }
    const needed = ["label", "valuemin", "valuemax", "valuenow", "valuetext", "describedby"];
    for (const slider of all('[role="slider"]')) {
      for (const name of needed) {
        if (!slider.getAttribute(`aria-${name}`)) found.push(`a slider without ${name}`);
      }
    }
    if (!document.documentElement.lang || !document.title) found.push("no language or title");
    return found;
  },
})
