/* Vectors and matrix products of one type of number: REAL is float or double, NAME(f) its own name of f. */

#define LANES (VECTOR_BYTES / (int)sizeof(REAL))
typedef REAL NAME(vector) __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef REAL NAME(loose) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
#define VECTOR NAME(vector)

/* Rows of numbers, so many numbers apart. */
typedef struct {
    REAL *at;
    long stride;
} NAME(rows);
#define ROWS NAME(rows)

/* Memory for n rows, not a power of two apart: those would map to the same few cache sets. */
static ROWS NAME(room)(arena *memory, int n, long width) {
    const long stride = (width + LANES - 1) / LANES * LANES + LANES;
    return (ROWS){take(memory, (size_t)n * stride * sizeof(REAL)), stride};
}

static void NAME(copy)(int n, int width, ROWS from, ROWS to) {
    for (int r = 0; r < n; r++) memcpy(to.at + r * to.stride, from.at + r * from.stride, width * sizeof(REAL));
}

static void NAME(add)(int n, int width, ROWS from, ROWS to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) to.at[r * to.stride + j] += from.at[r * from.stride + j];
}

/* Each row times a number of its own. */
static void NAME(masked)(int n, int width, ROWS from, ROWS kept, ROWS to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) to.at[r * to.stride + j] = from.at[r * from.stride + j] * kept.at[r * kept.stride];
}

static inline ROWS NAME(columns)(ROWS rows, long first) { return (ROWS){rows.at + first, rows.stride}; }

static inline ROWS NAME(below)(ROWS rows, long first) { return (ROWS){rows.at + first * rows.stride, rows.stride}; }

/* Block diagonal matrix, each block [in, out]. Packed, it lies in panels of two vectors of columns, filled up with zeros:
 * panel by panel, each [in, 2, LANES]. That pays where it meets many rows; else it is read where it is (no panels). */
typedef struct {
    int blocks, in, out;
    VECTOR *panels;
    source direct;
} NAME(matrix);
#define MATRIX NAME(matrix)

static inline VECTOR NAME(load)(const REAL *from, int count) {
    if (count >= LANES) return *(const NAME(loose) *)from;
    VECTOR out = {0};
    for (int i = 0; i < count; i++) out[i] = from[i];
    return out;
}

static inline void NAME(store)(REAL *to, VECTOR value, int count) {
    if (count >= LANES) {
        *(NAME(loose) *)to = value;
        return;
    }
    for (int i = 0; i < count; i++) to[i] = value[i];
}

static inline REAL NAME(sum)(VECTOR value) {
    REAL out = 0;
    for (int i = 0; i < LANES; i++) out += value[i];
    return out;
}

static MATRIX NAME(pack)(arena *memory, source from, int transposed) {
    const int in = transposed ? from.out : from.in, out = transposed ? from.in : from.out;
    const long stride_in = transposed ? from.stride_out : from.stride_in;
    const long stride_out = transposed ? from.stride_in : from.stride_out;
    const int width = 2 * LANES, panels = (out + width - 1) / width;
    MATRIX matrix = {from.blocks, in, out, take(memory, (size_t)from.blocks * panels * in * width * sizeof(REAL)), from};
    REAL *to = (REAL *)matrix.panels;
    for (int g = 0; g < from.blocks; g++) {
        const REAL *block = (const REAL *)from.at + g * from.stride_block;
        for (int left = 0; left < out; left += width)
            for (int k = 0; k < in; k++)
                for (int j = left; j < left + width; j++)
                    *to++ = j < out ? block[k * stride_in + j * stride_out] : 0;
    }
    return matrix;
}

/* Rows handled at once: two sums for each, two vectors of the matrix and one number must fit into the registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define TOGETHER 12
#else
#define TOGETHER 6
#endif

static inline __attribute__((always_inline)) void NAME(panel)(
    const int count, int in, const REAL *x, long stride, const VECTOR *w, VECTOR (*sums)[2]) {
    VECTOR left[TOGETHER], right[TOGETHER];
    for (int r = 0; r < count; r++) left[r] = sums[r][0], right[r] = sums[r][1];
    for (int k = 0; k < in; k++)
        for (int r = 0; r < count; r++) {
            left[r] += x[r * stride + k] * w[2 * k];
            right[r] += x[r * stride + k] * w[2 * k + 1];
        }
    for (int r = 0; r < count; r++) sums[r][0] = left[r], sums[r][1] = right[r];
}

static void NAME(multiply_panel)(int n, ROWS x, int in, const VECTOR *w, ROWS y, int width, const REAL *bias, int add) {
    for (int row = 0, groups = (n + TOGETHER - 1) / TOGETHER; groups; groups--) {
        const int count = (n - row + groups - 1) / groups; /* as even as can be */
        const REAL *from = x.at + row * x.stride;
        REAL *to = y.at + row * y.stride;
        VECTOR sums[TOGETHER][2] = {{{0}}};
        for (int r = 0; r < count; r++)
            for (int half = 0; half < 2; half++) {
                const int first = half * LANES;
                if (add) sums[r][half] = NAME(load)(to + r * y.stride + first, width - first);
                if (bias) sums[r][half] += NAME(load)(bias + first, width - first);
            }
        switch (count) { /* so that the number of rows is known where the loops over them are unrolled */
            case 1: NAME(panel)(1, in, from, x.stride, w, sums); break;
            case 2: NAME(panel)(2, in, from, x.stride, w, sums); break;
            case 3: NAME(panel)(3, in, from, x.stride, w, sums); break;
            case 4: NAME(panel)(4, in, from, x.stride, w, sums); break;
            case 5: NAME(panel)(5, in, from, x.stride, w, sums); break;
            case 6: NAME(panel)(6, in, from, x.stride, w, sums); break;
#if TOGETHER > 6
            case 7: NAME(panel)(7, in, from, x.stride, w, sums); break;
            case 8: NAME(panel)(8, in, from, x.stride, w, sums); break;
            case 9: NAME(panel)(9, in, from, x.stride, w, sums); break;
            case 10: NAME(panel)(10, in, from, x.stride, w, sums); break;
            case 11: NAME(panel)(11, in, from, x.stride, w, sums); break;
            case 12: NAME(panel)(12, in, from, x.stride, w, sums); break;
#endif
        }
        for (int r = 0; r < count; r++)
            for (int half = 0; half < 2; half++)
                NAME(store)(to + r * y.stride + half * LANES, sums[r][half], width - half * LANES);
        row += count;
    }
}

static MATRIX NAME(unpacked)(source from) { return (MATRIX){from.blocks, from.in, from.out, 0, from}; }

#define AHEAD 4 /* sums that do not wait for one another */

static inline VECTOR NAME(whole)(const REAL *from) { return *(const NAME(loose) *)from; }

/* y += x w for one or two rows and AHEAD vectors of columns. */
static inline __attribute__((always_inline)) void NAME(outer)(
    const int rows, ROWS x, int in, const REAL *w, long stride, ROWS y) {
    VECTOR sums[2][AHEAD];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD; i++) sums[r][i] = NAME(whole)(y.at + r * y.stride + i * LANES);
    for (int k = 0; k < in; k++)
        for (int i = 0; i < AHEAD; i++) {
            const VECTOR weights = NAME(whole)(w + k * stride + i * LANES);
            for (int r = 0; r < rows; r++) sums[r][i] += x.at[r * x.stride + k] * weights;
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD; i++) NAME(store)(y.at + r * y.stride + i * LANES, sums[r][i], LANES);
}

/* One block read where it is, whose rows are contiguous: y += x w. Two rows share what is read of it. */
static void NAME(multiply_rows)(int n, ROWS x, int in, int out, const REAL *w, long stride, ROWS y) {
    int j = 0;
    for (; j + AHEAD * LANES <= out; j += AHEAD * LANES) {
        int r = 0;
        for (; r + 2 <= n; r += 2) NAME(outer)(2, NAME(below)(x, r), in, w + j, stride, NAME(columns)(NAME(below)(y, r), j));
        if (r < n) NAME(outer)(1, NAME(below)(x, r), in, w + j, stride, NAME(columns)(NAME(below)(y, r), j));
    }
    for (; j < out; j += LANES) /* what is left of them */
        for (int r = 0; r < n; r++) {
            REAL *to = y.at + r * y.stride + j;
            VECTOR sum = NAME(load)(to, out - j);
            for (int k = 0; k < in; k++) sum += x.at[r * x.stride + k] * NAME(load)(w + k * stride + j, out - j);
            NAME(store)(to, sum, out - j);
        }
}

/* Inner products of one or two rows with AHEAD columns, of which the first `there` are added to y. */
static inline __attribute__((always_inline)) void NAME(inner)(
    const int rows, ROWS x, int in, const REAL *const *columns, int there, ROWS y) {
    VECTOR sums[2][AHEAD] = {{{0}}};
    int k = 0;
    for (; k + LANES <= in; k += LANES)
        for (int i = 0; i < AHEAD; i++) {
            const VECTOR weights = NAME(whole)(columns[i] + k);
            for (int r = 0; r < rows; r++) sums[r][i] += NAME(whole)(x.at + r * x.stride + k) * weights;
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD && i < there; i++) {
            REAL total = NAME(sum)(sums[r][i]);
            for (int rest = k; rest < in; rest++) total += x.at[r * x.stride + rest] * columns[i][rest];
            y.at[r * y.stride + i] += total;
        }
}

/* The same for one whose columns are contiguous; two rows share what is read of them. */
static void NAME(multiply_columns)(int n, ROWS x, int in, int out, const REAL *w, long stride, ROWS y) {
    for (int j = 0; j < out; j += AHEAD) {
        const REAL *columns[AHEAD];
        for (int i = 0; i < AHEAD; i++) columns[i] = w + (j + i < out ? j + i : j) * stride;
        int r = 0;
        for (; r + 2 <= n; r += 2)
            NAME(inner)(2, NAME(below)(x, r), in, columns, out - j, NAME(columns)(NAME(below)(y, r), j));
        if (r < n) NAME(inner)(1, NAME(below)(x, r), in, columns, out - j, NAME(columns)(NAME(below)(y, r), j));
    }
}

static void NAME(multiply_direct)(int n, ROWS x, const MATRIX *w, ROWS y, const REAL *bias, int add) {
    const source *s = &w->direct;
    for (int g = 0; g < w->blocks; g++) {
        const ROWS from = NAME(columns)(x, s->shared ? 0 : (long)g * w->in), to = NAME(columns)(y, (long)g * w->out);
        const REAL *block = (const REAL *)s->at + g * s->stride_block;
        for (int r = 0; r < n; r++)
            for (int j = 0; j < w->out; j++)
                to.at[r * to.stride + j] = (add ? to.at[r * to.stride + j] : 0) + (bias ? bias[(long)g * w->out + j] : 0);
        if (s->stride_out == 1) NAME(multiply_rows)(n, from, w->in, w->out, block, s->stride_in, to);
        else NAME(multiply_columns)(n, from, w->in, w->out, block, s->stride_out, to);
    }
}

/* y = x w + bias, or y += x w + bias: rows [n, blocks * in] to [n, blocks * out]. */
static void NAME(multiply)(int n, ROWS x, const MATRIX *w, ROWS y, const REAL *bias, int add) {
    const VECTOR *panel = w->panels;
    if (!panel) {
        NAME(multiply_direct)(n, x, w, y, bias, add);
        return;
    }
    for (int g = 0; g < w->blocks; g++)
        for (int left = 0; left < w->out; left += 2 * LANES, panel += 2 * w->in) {
            const long column = (long)g * w->out + left;
            const ROWS from = NAME(columns)(x, w->direct.shared ? 0 : (long)g * w->in);
            NAME(multiply_panel)(n, from, w->in, panel, NAME(columns)(y, column), w->out - left,
                                 bias ? bias + column : 0, add);
        }
}
