/* What charts answer: values under the pointer and by arrow keys, zoom, curves that come and go.
   The page is whole without this script; all it draws is in the page, as JSON beside each chart.
   Text from the data becomes text nodes, never markup. */
"use strict";

{
  const SIDE = 1000; /* of the drawing's own coordinates, which start at the top left */
  const MAX_POINTS = 2000; /* drawn of one curve */
  const TOP_HEAVY = 20; /* how far above the median a peak may be before the axis is logarithmic */
  const TICK = 64; /* pixels that a number on the x axis needs */
  const NEAR = 0.012; /* of the width: what counts as the same place */

  /* Numbers */

  const general = (v) => {
    if (v === null || !Number.isFinite(v)) return "–";
    const size = Math.abs(v);
    if (size !== 0 && (size < 1e-4 || size >= 1e4)) {
      return v.toExponential(3).replace(/\.?0+e/, "e").replace("e+", "e");
    }
    return String(Number(v.toPrecision(4)));
  };

  const plain = (v) => (Number.isInteger(v) ? v.toLocaleString("en-US") : general(v));

  /* Axes: the rules of axis.py */

  const at = (scale, v) =>
    scale.log ? Math.log10(v / scale.lo) / Math.log10(scale.hi / scale.lo)
      : (v - scale.lo) / (scale.hi - scale.lo);

  const yScale = (values) => {
    const real = values.filter((v) => v !== null).sort((a, b) => a - b);
    if (!real.length) return { lo: 0, hi: 1, log: false };
    const n = real.length, lo = real[0], hi = real[n - 1];
    const median = (real[(n - 1) >> 1] + real[n >> 1]) / 2;
    if (lo > 0 && hi > TOP_HEAVY * median) return { lo: lo / 1.2, hi: hi * 1.2, log: true };
    let margin = lo === hi ? 0.1 * Math.abs(lo) || 1 : 0.06 * (hi - lo);
    if (lo !== hi && lo >= 0 && lo < 0.4 * hi) return { lo: 0, hi: 1.04 * hi, log: false };
    return { lo: lo - margin, hi: hi + margin, log: false };
  };

  const ticks = (scale, n, whole) => {
    const { lo, hi } = scale;
    if (scale.log) {
      const first = Math.floor(Math.log10(lo)), last = Math.ceil(Math.log10(hi));
      const between = last - first <= 3 ? [1, 2, 5] : [1];
      const marks = [];
      for (let e = first; e <= last; e += Math.ceil((last - first) / (2 * n))) {
        marks.push(...between.map((m) => m * 10 ** e));
      }
      return marks.filter((v) => lo <= v && v <= hi).map((v) => [v, general(v)]);
    }
    const power = 10 ** Math.floor(Math.log10((hi - lo) / n));
    const ends = (s) => [Math.ceil(lo / s - 1e-9), Math.floor(hi / s + 1e-9)];
    const miss = (s) => Math.abs(ends(s)[1] - ends(s)[0] + 1 - n);
    const steps = [1, 2, 5, 10].map((m) => (whole ? Math.max(m * power, 1) : m * power));
    const step = steps.reduce((best, s) => (miss(s) < miss(best) ? s : best));
    const [first, last] = ends(step);
    const values = Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
    if (Math.max(0, ...values.map(Math.abs)) < 1e-3 || step >= 1e5) {
      return values.map((v) => [v, general(v)]);
    }
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    const style = { minimumFractionDigits: digits, maximumFractionDigits: digits };
    return values.map((v) => [v, v.toLocaleString("en-US", style)]);
  };

  /* Points */

  /* The first index whose x is not below `x`. */
  const lower = (xs, x) => {
    let lo = 0, hi = xs.length;
    while (lo < hi) {
      const middle = (lo + hi) >> 1;
      if (xs[middle] < x) lo = middle + 1; else hi = middle;
    }
    return lo;
  };

  const nearest = (xs, x) => {
    const i = lower(xs, x);
    return i > 0 && (i === xs.length || x - xs[i - 1] <= xs[i] - x) ? i - 1 : i;
  };

  /* Of the points from `a` to `b` those to draw: of each bucket the lowest, the highest, a gap. */
  const thinned = (ys, a, b) => {
    const all = Array.from({ length: Math.max(b - a, 0) }, (_, i) => a + i);
    if (all.length <= MAX_POINTS) return all;
    const keep = new Set([a, b - 1]), size = (3 * all.length) / MAX_POINTS;
    for (let start = a; start < b; start += size) {
      let low = -1, high = -1, gap = -1;
      for (let i = Math.ceil(start); i < Math.min(start + size, b); i++) {
        if (ys[i] === null) gap = i;
        else {
          if (low < 0 || ys[i] < ys[low]) low = i;
          if (high < 0 || ys[i] > ys[high]) high = i;
        }
      }
      for (const i of [low, high, gap]) if (i >= 0) keep.add(i);
    }
    return [...keep].sort((i, j) => i - j);
  };

  const element = (tag, name, text = "") => {
    const made = document.createElement(tag);
    made.className = name;
    made.textContent = text;
    return made;
  };

  const enliven = (figure) => {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const plot = figure.querySelector(".plot"), svg = plot.querySelector("svg");
    const paths = (kind) => [...svg.querySelectorAll(`path.${kind}`)];
    const lines = paths("line"), bands = paths("band"), dots = paths("dot");
    for (const [i, curve] of data.curves.entries()) {
      curve.shown = true;
      curve.line = lines[i];
      curve.band = curve.low.length ? bands.shift() : null;
      curve.dot = curve.dots ? dots.shift() : null;
      curve.spot = element("i", `spot ${curve.kind}`);
      curve.spot.hidden = true;
    }
    const [first, last] = data.x;
    const full = { lo: first, hi: last, log: false };
    let x = full, y = null, cursor = null, grip = null;

    const hair = element("i", "hair"), brush = element("i", "brush"), tip = element("div", "tip");
    const reset = element("button", "reset", "reset zoom");
    reset.type = "button";
    for (const made of [hair, brush, tip, reset]) made.hidden = true;
    plot.append(hair, brush, ...data.curves.map((curve) => curve.spot), tip);
    figure.querySelector(".log").after(reset);

    /* A slider is what a screen reader lets the arrow keys through to, and reads the text of. */
    plot.setAttribute("role", "slider");
    plot.setAttribute("aria-describedby", "chart-keys");
    plot.tabIndex = 0;

    const shown = () => data.curves.filter((curve) => curve.shown);
    /* The points of a curve within the window. */
    const within = (curve) => [lower(curve.x, x.lo), lower(curve.x, x.hi + 1e-9 * (x.hi - x.lo))];

    /* Drawing */

    const path = (curve, way, a, b) => {
      const parts = [], px = (i) => (SIDE * at(x, curve.x[i])).toFixed(1);
      const py = (v) => (SIDE * (1 - at(y, v))).toFixed(1);
      const kept = thinned(curve.y, a, b);
      const fits = (v) => v !== null && (v > 0 || !y.log);
      const isThere = (i) =>
        way === "band" ? fits(curve.low[i]) && fits(curve.high[i]) : fits(curve.y[i]);
      let run = [];
      const finish = () => {
        const joined = (values) => run.map((i, k) => `${px(i)},${py(values(i, k))}`);
        if (run.length && way === "band") {
          const back = joined((i) => curve.high[i]).reverse();
          parts.push(`M${[...joined((i) => curve.low[i]), ...back].join("L")}z`);
        } else if (run.length && way === "dot") {
          parts.push(...joined((i) => curve.y[i]).map((point) => `M${point}h0`));
        } else if (run.length) {
          const points = joined((i) => curve.y[i]);
          parts.push(`M${points.join("L")}${points.length === 1 ? "h0" : ""}`);
        }
        run = [];
      };
      for (const i of kept) if (isThere(i)) run.push(i); else finish();
      finish();
      return parts.join("");
    };

    /* How many numbers there is room for below the chart. */
    const nAcross = () => Math.min(data.nTicks, Math.max(Math.floor(plot.clientWidth / TICK), 2));

    const isWhole = () => x === full && data.curves.every((curve) => curve.shown);

    const fitted = () => {
      if (isWhole()) return { lo: data.y[0], hi: data.y[1], log: data.y[2] };
      const values = [];
      for (const curve of shown()) {
        const [a, b] = within(curve);
        for (const list of [curve.y, curve.low, curve.high]) {
          for (let i = a; i < Math.min(b, list.length); i++) values.push(list[i]);
        }
      }
      return yScale(values);
    };

    const draw = () => {
      y = fitted();
      for (const curve of data.curves) {
        const [a, b] = within(curve);
        /* A dot is drawn where it is; a curve goes on beyond the edge, to where it comes from. */
        const from = Math.max(a - 1, 0), to = Math.min(b + 1, curve.x.length);
        curve.line.setAttribute("d", curve.shown ? path(curve, "line", from, to) : "");
        curve.band?.setAttribute("d", curve.shown ? path(curve, "band", from, to) : "");
        curve.dot?.setAttribute("d", curve.shown ? path(curve, "dot", a, b) : "");
      }
      const yTicks = ticks(y, data.nTicks, false), xTicks = ticks(x, nAcross(), data.whole);
      const rule = ([v]) => `M0,${(SIDE * (1 - at(y, v))).toFixed(1)}h${SIDE}`;
      svg.querySelector(".grid").setAttribute("d", yTicks.map(rule).join(""));
      const inside = data.marks.filter((v) => x.lo <= v && v <= x.hi);
      const mark = (v) => `M${(SIDE * at(x, v)).toFixed(1)},0v${SIDE}`;
      svg.querySelector(".mark").setAttribute("d", inside.map(mark).join(""));
      for (const label of plot.querySelectorAll(".xt, .yt")) label.remove();
      for (const [v, text] of yTicks) {
        plot.append(element("span", "yt", text));
        plot.lastChild.style.bottom = `${(100 * at(y, v)).toFixed(2)}%`;
      }
      for (const [v, text] of xTicks) {
        plot.append(element("span", "xt", text));
        plot.lastChild.style.left = `${(100 * at(x, v)).toFixed(2)}%`;
      }
      figure.querySelector(".log").hidden = !y.log;
      plot.classList.toggle("zoomed", x !== full);
      reset.hidden = x === full;
      plot.setAttribute("aria-valuemin", x.lo);
      plot.setAttribute("aria-valuemax", x.hi);
    };

    /* Values */

    /* The place to read near `target`: a dot if one is close, else the nearest point. */
    const snapped = (target) => {
      let best = null;
      const near = NEAR * (x.hi - x.lo);
      for (const curve of shown()) {
        const [a, b] = within(curve);
        if (a >= b) continue;
        const found = curve.x[Math.min(Math.max(nearest(curve.x, target), a), b - 1)];
        const away = Math.abs(found - target);
        const cost = curve.dots && away <= near ? away - near : away;
        if (best === null || cost < best.cost) best = { place: found, cost };
      }
      return best && best.place;
    };

    /* The point of a curve at `place`; of a thinned curve the nearest, of dots only their own. */
    const pointAt = (curve, place) => {
      if (!curve.x.length) return -1;
      const i = nearest(curve.x, place), away = Math.abs(curve.x[i] - place);
      const gap = Math.max((curve.x[i + 1] ?? place) - curve.x[i], curve.x[i] - (curve.x[i - 1] ?? place));
      const reach = Math.max(curve.dots ? 0 : gap / 2, (NEAR / 2) * (x.hi - x.lo));
      return away <= reach && x.lo <= curve.x[i] && curve.x[i] <= x.hi ? i : -1;
    };

    const hide = () => {
      cursor = null;
      for (const made of [hair, tip, ...data.curves.map((curve) => curve.spot)]) made.hidden = true;
    };

    const show = (place) => {
      if (place === null) return hide();
      cursor = place;
      const heading = data.place.replace("{}", plain(place)), said = [];
      const left = `${100 * at(x, place)}%`;
      tip.replaceChildren(element("b", "", heading));
      for (const curve of data.curves) {
        const i = curve.shown ? pointAt(curve, place) : -1, v = i < 0 ? null : curve.y[i];
        curve.spot.hidden = v === null;
        if (i < 0) continue;
        let text = general(v);
        if (curve.low.length && curve.low[i] !== curve.high[i]) {
          text += ` (${general(curve.low[i])} – ${general(curve.high[i])})`;
        }
        const row = element("span", `key ${curve.kind}`);
        row.append(element("span", "", curve.label), element("b", "", text));
        tip.append(row);
        said.push(`${curve.label} ${text}`);
        if (v === null) continue;
        curve.spot.style.left = `${100 * at(x, curve.x[i])}%`;
        curve.spot.style.bottom = `${100 * at(y, v)}%`;
      }
      hair.style.left = left;
      hair.hidden = tip.hidden = false;
      /* Beside the hairline, on the side with more room, and never past the edge of the page. */
      const box = plot.getBoundingClientRect(), half = at(x, place) > 0.5;
      const wanted = at(x, place) * box.width + (half ? -tip.offsetWidth - 12 : 12);
      const most = document.documentElement.clientWidth - 4 - tip.offsetWidth - box.left;
      tip.style.left = `${Math.max(Math.min(wanted, most), 4 - box.left)}px`;
      plot.setAttribute("aria-valuenow", place);
      plot.setAttribute("aria-valuetext", [heading, ...said].join(", "));
    };

    /* Zoom */

    const zoom = (lo, hi) => {
      const least = (full.hi - full.lo) * 1e-6, room = hi - lo;
      lo = Math.max(lo, full.lo);
      hi = Math.min(hi, full.hi);
      if (room < least || !shown().some((c) => lower(c.x, hi) - lower(c.x, lo) >= 2)) return;
      x = lo <= full.lo && hi >= full.hi ? full : { lo, hi, log: false };
      draw();
    };
    const zoomOut = () => {
      x = full;
      draw();
      if (cursor !== null) show(cursor);
    };
    const zoomBy = (factor) => {
      const centre = cursor ?? (x.lo + x.hi) / 2, width = (x.hi - x.lo) * factor;
      const lo = Math.max(Math.min(centre - width / 2, full.hi - width), full.lo);
      zoom(lo, lo + width);
      if (cursor !== null) show(snapped(cursor));
    };

    /* Who acts: pointer, keys, legend */

    const placeOf = (event) => {
      const box = plot.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      return x.lo + share * (x.hi - x.lo);
    };

    plot.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      grip = { place: placeOf(event), left: event.clientX };
      plot.setPointerCapture(event.pointerId);
    });
    plot.addEventListener("pointermove", (event) => {
      const place = placeOf(event);
      show(snapped(place));
      if (!grip) return;
      brush.hidden = Math.abs(event.clientX - grip.left) < 6;
      const [a, b] = [grip.place, place].sort((p, q) => p - q).map((p) => 100 * at(x, p));
      brush.style.left = `${a}%`;
      brush.style.width = `${b - a}%`;
    });
    plot.addEventListener("pointerup", (event) => {
      if (grip && !brush.hidden) {
        const [lo, hi] = [grip.place, placeOf(event)].sort((p, q) => p - q);
        hide();
        zoom(lo, hi);
      } else show(snapped(placeOf(event)));
      grip = null;
      brush.hidden = true;
    });
    plot.addEventListener("pointercancel", () => {
      grip = null;
      brush.hidden = true;
    });
    plot.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && !grip) hide();
    });
    plot.addEventListener("dblclick", zoomOut);
    plot.addEventListener("blur", hide);
    reset.addEventListener("click", () => {
      zoomOut();
      plot.focus({ preventScroll: true });
    });

    /* The next place to read: the next point, or a hundredth of the window if points are many. */
    const stepped = (way, times) => {
      if (cursor === null) return snapped(way > 0 ? x.lo : x.hi);
      const step = (times * (x.hi - x.lo)) / 100;
      const next = [];
      for (const curve of shown()) {
        const [a, b] = within(curve), here = lower(curve.x, cursor);
        const far = Math.abs((curve.x[b - 1] ?? 0) - (curve.x[a] ?? 0)) / Math.max(b - a - 1, 1);
        const i = way < 0 ? here - 1 : curve.x[here] === cursor ? here + 1 : here;
        if (i < a || i >= b) continue;
        if (far >= step || curve.dots) next.push(curve.x[i]);
        else next.push(curve.x[Math.min(Math.max(nearest(curve.x, cursor + way * step), a), b - 1)]);
      }
      next.sort((p, q) => way * (p - q));
      return next.find((p) => way * (p - cursor) > 0) ?? cursor;
    };

    const keys = {
      ArrowRight: () => show(stepped(1, 1)),
      ArrowLeft: () => show(stepped(-1, 1)),
      ArrowUp: () => show(stepped(1, 1)),
      ArrowDown: () => show(stepped(-1, 1)),
      PageUp: () => show(stepped(1, 10)),
      PageDown: () => show(stepped(-1, 10)),
      Home: () => show(snapped(x.lo)),
      End: () => show(snapped(x.hi)),
      "+": () => zoomBy(0.5),
      "=": () => zoomBy(0.5),
      "-": () => zoomBy(2),
      Escape: () => (x === full ? hide() : zoomOut()),
    };
    plot.addEventListener("keydown", (event) => {
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      act();
    });

    const keysOfLegend = [...figure.querySelectorAll(".legend .key")];
    /* Show or hide the curves of a kind; the last one that is shown stays. */
    const turn = (kind, on) => {
      for (const [i, curve] of data.curves.entries()) {
        if (curve.kind !== kind || curve.shown === on || (!on && shown().length === 1)) continue;
        curve.shown = on;
        keysOfLegend[i].setAttribute("aria-pressed", String(on));
        hide();
        draw();
      }
    };
    for (const [i, key] of keysOfLegend.entries()) {
      key.addEventListener("click", () => {
        const { kind, shown: on } = data.curves[i];
        /* A row of a comparison has one colour in all charts, and comes and goes in all. */
        for (const chart of kind.startsWith("c") ? charts : [turn]) chart(kind, !on);
      });
    }

    y = fitted();
    plot.setAttribute("aria-valuemin", x.lo);
    plot.setAttribute("aria-valuemax", x.hi);
    plot.setAttribute("aria-valuenow", x.hi);
    plot.setAttribute("aria-valuetext", data.place.replace("{}", plain(x.hi)));
    let room = data.nTicks;
    const fit = () => {
      if (nAcross() === room) return;
      room = nAcross();
      hide();
      draw();
    };
    fit();
    window.addEventListener("resize", fit);
    return turn;
  };

  const charts = [...document.querySelectorAll("figure.chart")].map(enliven);
}
