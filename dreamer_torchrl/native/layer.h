/* A linear layer, with norm and silu behind it where it has a scale: what comes before them and what after. */

typedef struct {
    const layer_arguments *a;
    NAME(layer) layer;
} NAME(layer_job);

static void NAME(layer_tile)(const void *given, long row, int n) {
    const NAME(layer_job) *job = given;
    const long in = job->layer.weight.in, out = job->layer.weight.out;
    const ROWS x = {(REAL *)job->a->x + row * in, in}, before = {(REAL *)job->a->before + row * out, out};
    NAME(multiply)(n, x, &job->layer.weight, before, job->layer.bias, 0);
    if (job->layer.scale) NAME(norm_silu)(n, out, before, job->layer.scale, (ROWS){(REAL *)job->a->after + row * out, out});
}

void NAME(layer_rows)(const layer_arguments *a) {
    arena memory = {0};
    NAME(layer_job) job = {a, NAME(layer_of)(&memory, &a->layer, a->rows > 16)};
    share(NAME(layer_tile), &job, a->rows, 32, 48, a->threads);
    release(&memory);
}
