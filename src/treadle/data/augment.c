/* A batch of augmented pictures in one pass: read through a homography, relight, normalise.

   One picture at a time is copied to a scratch of 4 bytes a pixel, in a frame of empty pixels: small
   enough for the second-level cache, and a pixel is then one aligned load whose neighbours may be
   read without asking where the picture ends. The loops over a row of the output have no branches,
   so that the compiler turns them into vector code.

   What becomes of a picture depends on no other: neither on the batch nor on the threads. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define RING 2 /* empty pixels on each side: what a place just outside the frame reads */

enum { REFLECTION, BORDER, ZEROS };

typedef struct {
    const uint8_t *pixels;  /* of the first row */
    int64_t row;            /* bytes from one row to the next */
    double place[9];        /* homography: (column, row, 1) of the output to those of the picture */
    float slope, offset;    /* of the log-odds, base 2 */
    int32_t halvings, light;
} Picture;

typedef struct {
    const Picture *pictures;
    float *out;             /* (n, channels, out_height, out_width) */
    int32_t n, channels, height, width, out_height, out_width, pad, corners, threads;
    float scale[4], shift[4]; /* by channel: of values from 0 to 1 */
} Batch;

/* Bytes of scratch: the frame and its ring. */
static size_t scratch_of(int height, int width) {
    return (size_t)(height + 2 * RING) * (size_t)(width + 2 * RING) * 4;
}

static void copy_row(uint32_t *to, const uint8_t *from, int width, int channels) {
    if (channels == 1) {
        for (int x = 0; x < width; x++) to[x] = from[x];
        return;
    }
    for (int x = 0; x + 1 < width; x++) { /* the fourth byte is the next pixel's, and never read */
        uint32_t pixel;
        memcpy(&pixel, from + 3 * x, 4);
        to[x] = pixel;
    }
    const uint8_t *last = from + 3 * (width - 1);
    to[width - 1] = last[0] | (uint32_t)last[1] << 8 | (uint32_t)last[2] << 16;
}

static void ring(uint32_t *scratch, int height, int width) {
    int across = width + 2 * RING;
    memset(scratch, 0, (size_t)across * RING * 4);
    memset(scratch + (size_t)(height + RING) * across, 0, (size_t)across * RING * 4);
    for (int y = RING; y < height + RING; y++) {
        uint32_t *row = scratch + (size_t)y * across;
        for (int x = 0; x < RING; x++) row[x] = row[width + RING + x] = 0;
    }
}

/* The picture, averaged over the part of it that each of (height, width) pixels stands for. */
static void average(uint32_t *to, const Picture *p, const Batch *b, int height, int width) {
    for (int y = 0; y < height; y++) {
        int top = (int)((int64_t)y * b->height / height);
        int bottom = (int)(((int64_t)(y + 1) * b->height + height - 1) / height);
        for (int x = 0; x < width; x++) {
            int left = (int)((int64_t)x * b->width / width);
            int right = (int)(((int64_t)(x + 1) * b->width + width - 1) / width);
            uint32_t pixel = 0;
            for (int c = 0; c < b->channels; c++) {
                uint32_t sum = 0, count = (uint32_t)((bottom - top) * (right - left));
                for (int i = top; i < bottom; i++)
                    for (int j = left; j < right; j++)
                        sum += p->pixels[i * p->row + (int64_t)j * b->channels + c];
                pixel |= (sum + count / 2) / count << 8 * c;
            }
            to[(size_t)y * (width + 2 * RING) + x] = pixel;
        }
    }
}

static inline float between(float v, float low, float high) {
    v = v < low ? low : v; /* of a NaN the low end comes */
    return v > high ? high : (v >= low ? v : low);
}

/* A place outside the frame, brought inside as grid_sample does; `size` pixels on this axis. */
static inline float folded(float v, int size, int pad, int corners) {
    float edge = (float)(size - 1);
    if (pad == ZEROS) return between(v, -1.0f, (float)size);
    if (pad == REFLECTION) {
        float low = corners ? 0.0f : -0.5f, span = corners ? edge : (float)size;
        float turns = fabsf(v - low) * (span > 0 ? 1.0f / span : 0.0f);
        float whole = floorf(turns), part = (turns - whole) * span;
        float odd = whole - 2.0f * floorf(0.5f * whole);
        v = low + (odd != 0.0f ? span - part : part);
    }
    return between(v, 0.0f, edge);
}

/* Polynomials of least error, fitted to within 4e-6: what reaches a pixel is a thousandth of a step
   of the 255. Divisions cost more than they would save. */

static inline float log2_of(float v) {
    union { float f; int32_t i; } m = {v};
    int32_t power = (m.i - 0x3f3504f3) >> 23; /* so that m is in [1/sqrt(2), sqrt(2)) */
    m.i -= power << 23;
    float u = m.f - 1.0f;
    return (float)power
           + u * (1.44272771f + u * (-0.72107757f + u * (0.47882665f
           + u * (-0.36813084f + u * (0.32653732f + u * -0.20872576f)))));
}

static inline float exp2_of(float v) {
    v = between(v, -126.0f, 126.0f);
    float whole = floorf(v + 0.5f), u = v - whole; /* u is in [-1/2, 1/2] */
    float part = 1.00000011f + u * (0.69311221f + u * (0.24021973f
                 + u * (0.05597589f + u * 0.00968193f)));
    union { int32_t i; float f; } power = {((int32_t)whole + 127) << 23};
    return power.f * part;
}

static inline float relit(float v, float slope, float offset) {
    v = between(v, 1e-7f, 1.0f - 1.1920929e-7f); /* black and white have infinite log-odds */
    float odds = exp2_of(slope * (log2_of(v) - log2_of(1.0f - v)) + offset);
    return odds / (1.0f + odds);
}

static inline float channel_of(uint32_t pixel, int c) {
    return (float)(int32_t)(pixel >> 8 * c & 255u);
}

/* `pad`, `corners` and `channels` are constants wherever this is inlined. */
static inline __attribute__((always_inline)) void sample_as(
    const Picture *p, const Batch *b, const uint32_t *scratch, float *out, float *work,
    int height, int width, int pad, int corners, int channels) {
    int across = width + 2 * RING, out_width = b->out_width;
    const uint32_t *origin = scratch + (size_t)RING * across + RING;
    const double *m = p->place;
    float dx = (float)m[0], dy = (float)m[3], dz = (float)m[6];
    float *xs = work, *ys = work + out_width;
    for (int i = 0; i < b->out_height; i++) {
        float x0 = (float)(m[1] * i + m[2]), y0 = (float)(m[4] * i + m[5]);
        float z0 = (float)(m[7] * i + m[8]);
        if (m[6] == 0.0 && m[7] == 0.0)
            for (int j = 0; j < out_width; j++) xs[j] = x0 + dx * j, ys[j] = y0 + dy * j;
        else
            for (int j = 0; j < out_width; j++) {
                float depth = 1.0f / (z0 + dz * j);
                xs[j] = (x0 + dx * j) * depth;
                ys[j] = (y0 + dy * j) * depth;
            }
        float *rows[4];
        for (int c = 0; c < channels; c++)
            rows[c] = out + ((size_t)c * b->out_height + i) * out_width;
        #pragma omp simd
        for (int j = 0; j < out_width; j++) {
            float x = folded(xs[j], width, pad, corners), y = folded(ys[j], height, pad, corners);
            float left = floorf(x), top = floorf(y), fx = x - left, fy = y - top;
            int at = (int)top * across + (int)left;
            uint32_t a = origin[at], r = origin[at + 1];
            uint32_t d = origin[at + across], e = origin[at + across + 1];
            for (int c = 0; c < channels; c++) {
                float upper = channel_of(a, c) + fx * (channel_of(r, c) - channel_of(a, c));
                float lower = channel_of(d, c) + fx * (channel_of(e, c) - channel_of(d, c));
                rows[c][j] = upper + fy * (lower - upper);
            }
        }
        for (int c = 0; c < channels; c++) {
            float *row = rows[c], scale = b->scale[c], shift = b->shift[c];
            if (p->light) {
                float slope = p->slope, offset = p->offset;
                #pragma omp simd
                for (int j = 0; j < out_width; j++)
                    row[j] = relit(row[j] * (1.0f / 255), slope, offset) * scale + shift;
            } else {
                scale *= 1.0f / 255;
                #pragma omp simd
                for (int j = 0; j < out_width; j++) row[j] = row[j] * scale + shift;
            }
        }
    }
}

#define WITH_PAD(PAD, CORNERS) \
    (b->channels == 1 ? sample_as(p, b, scratch, out, work, height, width, PAD, CORNERS, 1) \
                      : sample_as(p, b, scratch, out, work, height, width, PAD, CORNERS, 3))

static void one(const Picture *p, const Batch *b, uint32_t *scratch, float *work, float *out) {
    int height = b->height, width = b->width;
    if (p->halvings) {
        double by = (double)(1 << p->halvings); /* ties to even, as round() in Python */
        height = (int)rint(height / by), width = (int)rint(width / by);
        height = height > 0 ? height : 1, width = width > 0 ? width : 1;
    }
    int across = width + 2 * RING;
    uint32_t *inner = scratch + (size_t)RING * across + RING;
    ring(scratch, height, width);
    if (p->halvings)
        average(inner, p, b, height, width);
    else
        for (int y = 0; y < height; y++)
            copy_row(inner + (size_t)y * across, p->pixels + y * p->row, width, b->channels);
    int corners = b->corners && !p->halvings;
    if (b->pad == ZEROS) WITH_PAD(ZEROS, 0);
    else if (b->pad == BORDER) WITH_PAD(BORDER, 0);
    else if (corners) WITH_PAD(REFLECTION, 1);
    else WITH_PAD(REFLECTION, 0);
}

void run(const Batch *b) {
    size_t plane = (size_t)b->out_height * b->out_width * b->channels;
    #pragma omp parallel num_threads(b->threads)
    {
        uint32_t *scratch = malloc(scratch_of(b->height, b->width));
        float *work = malloc(2 * sizeof(float) * b->out_width);
        #pragma omp for schedule(static)
        for (int k = 0; k < b->n; k++) one(b->pictures + k, b, scratch, work, b->out + plane * k);
        free(scratch);
        free(work);
    }
}
