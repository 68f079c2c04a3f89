/* Vectors and matrix products. */

#define LANES (VECTOR_BYTES / (int)sizeof(real))
typedef real Vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
typedef real Loose __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

/* So many numbers apart. */
typedef struct { real *at; long stride; } Rows;

/* Memory for n rows, not a power of two apart: those would map to the same few cache sets. */
static Rows room(Arena *memory, int n, long width) {
    const long stride = (width + LANES - 1) / LANES * LANES + LANES;
    return (Rows){take(memory, (size_t)n * stride * sizeof(real)), stride};
}

/* Rows of a contiguous [rows, width] tensor from one on. */
static inline Rows rows_of(const real *tensor, long row, long width) { return (Rows){(real *)tensor + row * width, width}; }

/* Rows of a contiguous [rows, steps, width] tensor at one time. */
static inline Rows step_of(const real *tensor, long row, long steps, long time, long width) {
    return (Rows){(real *)tensor + (row * steps + time) * width, steps * width};
}

static inline real *row_of(Rows rows, long row) { return rows.at + row * rows.stride; }
static inline Rows part(Rows rows, long row, long column) { return (Rows){row_of(rows, row) + column, rows.stride}; }
static inline Rows columns(Rows rows, long first) { return part(rows, 0, first); }

static void copy(int n, int width, Rows from, Rows to) {
    for (int r = 0; r < n; r++) memcpy(row_of(to, r), row_of(from, r), width * sizeof(real));
}

static void add(int n, int width, Rows from, Rows to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) row_of(to, r)[j] += row_of(from, r)[j];
}

/* Each row times a number of its own. */
static void masked(int n, int width, Rows from, Rows kept, Rows to) {
    for (int r = 0; r < n; r++)
        for (int j = 0; j < width; j++) row_of(to, r)[j] = row_of(from, r)[j] * *row_of(kept, r);
}

/* Block diagonal matrix, each block [in, out]. Packed, it lies in panels of two vectors of columns, filled up with zeros:
 * panel by panel, each [in, 2, LANES]. That pays where it meets many rows; else it is read where it is (no panels). */
typedef struct { int blocks, in, out; Vector *panels; Source direct; } Matrix;

static inline Vector load(const real *from, int count) {
    if (count >= LANES) return *(const Loose *)from;
    Vector out = {0};
    for (int i = 0; i < count; i++) out[i] = from[i];
    return out;
}

static inline void store(real *to, Vector value, int count) {
    if (count >= LANES) {
        *(Loose *)to = value;
        return;
    }
    for (int i = 0; i < count; i++) to[i] = value[i];
}

static inline real sum(Vector value) {
    real out = 0;
    for (int i = 0; i < LANES; i++) out += value[i];
    return out;
}

static Matrix pack(Arena *memory, Source from, int transposed) {
    const int in = transposed ? from.out : from.in, out = transposed ? from.in : from.out;
    const long stride_in = transposed ? from.stride_out : from.stride_in;
    const long stride_out = transposed ? from.stride_in : from.stride_out;
    const int width = 2 * LANES, panels = (out + width - 1) / width;
    Matrix matrix = {from.blocks, in, out, take(memory, (size_t)from.blocks * panels * in * width * sizeof(real)), from};
    real *to = (real *)matrix.panels;
    for (int g = 0; g < from.blocks; g++) {
        const real *block = from.at + g * from.stride_block;
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

static inline __attribute__((always_inline)) void panel(
    const int count, int in, const real *x, long stride, const Vector *w, Vector (*sums)[2]) {
    Vector left[TOGETHER], right[TOGETHER];
    for (int r = 0; r < count; r++) left[r] = sums[r][0], right[r] = sums[r][1];
    for (int k = 0; k < in; k++)
        for (int r = 0; r < count; r++) {
            left[r] += x[r * stride + k] * w[2 * k];
            right[r] += x[r * stride + k] * w[2 * k + 1];
        }
    for (int r = 0; r < count; r++) sums[r][0] = left[r], sums[r][1] = right[r];
}

#define CASE(count)                                \
    case count:                                    \
        panel(count, in, from, x.stride, w, sums); \
        break;

static void multiply_panel(int n, Rows x, int in, const Vector *w, Rows y, int width, const real *bias, int add) {
    for (int row = 0, groups = (n + TOGETHER - 1) / TOGETHER; groups; groups--) {
        const int count = (n - row + groups - 1) / groups; /* as even as can be */
        const real *from = row_of(x, row);
        real *to = row_of(y, row);
        Vector sums[TOGETHER][2] = {{{0}}};
        for (int r = 0; r < count; r++)
            for (int half = 0; half < 2; half++) {
                const int first = half * LANES;
                if (add) sums[r][half] = load(to + r * y.stride + first, width - first);
                if (bias) sums[r][half] += load(bias + first, width - first);
            }
        switch (count) { /* so that the number of rows is known where the loops over them are unrolled */
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if TOGETHER > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
        }
        for (int r = 0; r < count; r++)
            for (int half = 0; half < 2; half++)
                store(to + r * y.stride + half * LANES, sums[r][half], width - half * LANES);
        row += count;
    }
}

static Matrix unpacked(Source from) { return (Matrix){from.blocks, from.in, from.out, 0, from}; }

#define AHEAD 4 /* sums that do not wait for one another */

static inline Vector whole(const real *from) { return *(const Loose *)from; }

/* y += x w for one or two rows and AHEAD vectors of columns. */
static inline __attribute__((always_inline)) void outer(
    const int rows, Rows x, int in, const real *w, long stride, Rows y) {
    Vector sums[2][AHEAD];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD; i++) sums[r][i] = whole(row_of(y, r) + i * LANES);
    for (int k = 0; k < in; k++)
        for (int i = 0; i < AHEAD; i++) {
            const Vector weights = whole(w + k * stride + i * LANES);
            for (int r = 0; r < rows; r++) sums[r][i] += row_of(x, r)[k] * weights;
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD; i++) store(row_of(y, r) + i * LANES, sums[r][i], LANES);
}

/* One block read where it is, whose rows are contiguous: y += x w. Two rows share what is read of it. */
static void multiply_rows(int n, Rows x, int in, int out, const real *w, long stride, Rows y) {
    int j = 0;
    for (; j + AHEAD * LANES <= out; j += AHEAD * LANES) {
        int r = 0;
        for (; r + 2 <= n; r += 2) outer(2, part(x, r, 0), in, w + j, stride, part(y, r, j));
        if (r < n) outer(1, part(x, r, 0), in, w + j, stride, part(y, r, j));
    }
    for (; j < out; j += LANES) /* what is left of them */
        for (int r = 0; r < n; r++) {
            real *to = row_of(y, r) + j;
            Vector sum = load(to, out - j);
            for (int k = 0; k < in; k++) sum += row_of(x, r)[k] * load(w + k * stride + j, out - j);
            store(to, sum, out - j);
        }
}

/* Inner products of one or two rows with AHEAD columns, of which the first `there` are added to y. */
static inline __attribute__((always_inline)) void inner(
    const int rows, Rows x, int in, const real *const *columns, int there, Rows y) {
    Vector sums[2][AHEAD] = {{{0}}};
    int k = 0;
    for (; k + LANES <= in; k += LANES)
        for (int i = 0; i < AHEAD; i++) {
            const Vector weights = whole(columns[i] + k);
            for (int r = 0; r < rows; r++) sums[r][i] += whole(row_of(x, r) + k) * weights;
        }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < AHEAD && i < there; i++) {
            real total = sum(sums[r][i]);
            for (int rest = k; rest < in; rest++) total += row_of(x, r)[rest] * columns[i][rest];
            row_of(y, r)[i] += total;
        }
}

/* The same for one whose columns are contiguous; two rows share what is read of them. */
static void multiply_columns(int n, Rows x, int in, int out, const real *w, long stride, Rows y) {
    for (int j = 0; j < out; j += AHEAD) {
        const real *columns[AHEAD];
        for (int i = 0; i < AHEAD; i++) columns[i] = w + (j + i < out ? j + i : j) * stride;
        int r = 0;
        for (; r + 2 <= n; r += 2) inner(2, part(x, r, 0), in, columns, out - j, part(y, r, j));
        if (r < n) inner(1, part(x, r, 0), in, columns, out - j, part(y, r, j));
    }
}

static void multiply_direct(int n, Rows x, const Matrix *w, Rows y, const real *bias, int add) {
    const Source *s = &w->direct;
    for (int g = 0; g < w->blocks; g++) {
        const Rows from = columns(x, s->shared ? 0 : (long)g * w->in), to = columns(y, (long)g * w->out);
        const real *block = s->at + g * s->stride_block;
        for (int r = 0; r < n; r++)
            for (int j = 0; j < w->out; j++)
                row_of(to, r)[j] = (add ? row_of(to, r)[j] : 0) + (bias ? bias[(long)g * w->out + j] : 0);
        if (s->stride_out == 1) multiply_rows(n, from, w->in, w->out, block, s->stride_in, to);
        else multiply_columns(n, from, w->in, w->out, block, s->stride_out, to);
    }
}

/* y = x w + bias, or y += x w + bias: rows [n, blocks * in] to [n, blocks * out]. */
static void multiply(int n, Rows x, const Matrix *w, Rows y, const real *bias, int add) {
    const Vector *panel = w->panels;
    if (!panel) return multiply_direct(n, x, w, y, bias, add);
    for (int g = 0; g < w->blocks; g++)
        for (int left = 0; left < w->out; left += 2 * LANES, panel += 2 * w->in) {
            const long column = (long)g * w->out + left;
            const Rows from = columns(x, w->direct.shared ? 0 : (long)g * w->in);
            multiply_panel(n, from, w->in, panel, columns(y, column), w->out - left, bias ? bias + column : 0, add);
        }
}
