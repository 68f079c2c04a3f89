/* Layers of a network by themselves. */

/* A linear layer, with norm and silu behind it where it has a scale: what comes before them and what after. */

typedef struct {
    const layer_arguments *a;
    NAME(layer) layer;
} NAME(layer_job);

static void NAME(layer_tile)(const void *given, long row, int n, arena *memory) {
    const NAME(layer_job) *job = given;
    const long in = job->layer.weight.in, out = job->layer.weight.out;
    const ROWS x = {(REAL *)job->a->x + row * in, in}, before = {(REAL *)job->a->before + row * out, out};
    NAME(multiply)(n, x, &job->layer.weight, before, job->layer.bias, 0);
    if (job->layer.scale) NAME(norm_silu)(n, out, before, job->layer.scale, (ROWS){(REAL *)job->a->after + row * out, out});
}

int NAME(layer_rows)(const layer_arguments *a) {
    OPEN(memory)
    NAME(layer_job) job = {a, NAME(layer_of)(&memory, &a->layer, a->rows > 16)};
    const int failed = share(NAME(layer_tile), &job, a->rows, 32, 48, a->threads);
    release(&memory);
    return failed;
}

/* Hidden layers one after the other; only the last one's numbers leave the cache. */

typedef struct {
    const perceptron_arguments *a;
    NAME(layer) layer[MOST_LAYERS];
    int widest;
} NAME(perceptron_job);

static void NAME(perceptron_tile)(const void *given, long row, int n, arena *memory) {
    const NAME(perceptron_job) *job = given;
    const long count = job->a->layers, in = job->layer[0].weight.in, out = job->layer[count - 1].weight.out;
    const ROWS here = NAME(room)(memory, n, job->widest), there = NAME(room)(memory, n, job->widest);
    const ROWS x = {(REAL *)job->a->x + row * in, in}, y = {(REAL *)job->a->y + row * out, out};
    NAME(copy)(n, out, NAME(perceptron)(n, job->layer, count, x, here, there), y);
}

int NAME(perceptron_rows)(const perceptron_arguments *a) {
    OPEN(memory)
    NAME(perceptron_job) job = {.a = a};
    for (long i = 0; i < a->layers; i++) {
        job.layer[i] = NAME(layer_of)(&memory, &a->layer[i], a->rows > 16);
        if (job.layer[i].weight.out > job.widest) job.widest = job.layer[i].weight.out;
    }
    const int failed = share(NAME(perceptron_tile), &job, a->rows, 32, 48, a->threads);
    release(&memory);
    return failed;
}
