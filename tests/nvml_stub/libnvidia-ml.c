/* A stand-in for NVIDIA's management library, scripted by a text file.
 *
 * The file named by NVML_STUB is read again at every call, so a test changes a GPU in mid-flight.
 * Without it the library answers as if there were no driver library at all.
 *
 *   init CODE                          nvmlInit fails with CODE
 *   count CODE                         nvmlDeviceGetCount fails with CODE
 *   driver EPOCH CODE                  another EPOCH than at nvmlInit: every call answers CODE
 *   gpu UUID NAME WITH SPACES          one more device
 *     memory TOTAL RESERVED FREE USED  bytes; version 1 of the structure counts reserved as used
 *     capability MAJOR MINOR
 *     mig 0|1                          without this line: not supported
 *     process PID BYTES|-              "-": the driver does not tell
 *     fail CALL CODE                   CALL: handle uuid name memory_v1 memory_v2 capability mig
 *                                      processes processes_fill
 *
 * Layouts and codes are those of nvml.h as nvidia-ml-py 12.560 declares them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3,
       INSUFFICIENT_SIZE = 7, LIBRARY_NOT_FOUND = 12, ARGUMENT_VERSION_MISMATCH = 25 };
enum { MAX_GPUS = 16, MAX_PROCESSES = 64, MAX_FAILURES = 16, MEMORY_V2 = 0x02000028 };

typedef unsigned long long bytes;
typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned version; bytes total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; } process;
typedef struct { char call[32]; int code; } failure;

typedef struct {
    char uuid[96], name[96];
    bytes total, reserved, free, used;
    int major, minor, mig, processes, failures;
    process process[MAX_PROCESSES];
    failure failure[MAX_FAILURES];
} gpu;

static struct {
    int init, count_code, epoch, epoch_code, gpus;
    gpu gpu[MAX_GPUS];
} script;

static int users, epoch_at_init;
static int init_calls, shutdown_calls;

int stub_init_calls(void) { return init_calls; }
int stub_shutdown_calls(void) { return shutdown_calls; }

static void read_gpu_line(gpu *g, const char *line) {
    process *p = &g->process[g->processes];
    failure *f = &g->failure[g->failures];
    char used[32];
    sscanf(line, " memory %llu %llu %llu %llu", &g->total, &g->reserved, &g->free, &g->used);
    sscanf(line, " capability %d %d", &g->major, &g->minor);
    sscanf(line, " mig %d", &g->mig);
    if (g->processes < MAX_PROCESSES && sscanf(line, " process %u %31s", &p->pid, used) == 2) {
        p->used = used[0] == '-' ? ~0ULL : strtoull(used, NULL, 10);
        g->processes++;
    }
    if (g->failures < MAX_FAILURES && sscanf(line, " fail %31s %d", f->call, &f->code) == 2)
        g->failures++;
}

static void read_line(const char *line) {
    gpu *next = &script.gpu[script.gpus];
    sscanf(line, "init %d", &script.init);
    sscanf(line, "count %d", &script.count_code);
    sscanf(line, "driver %d %d", &script.epoch, &script.epoch_code);
    if (script.gpus < MAX_GPUS && sscanf(line, "gpu %95s %95[^\n]", next->uuid, next->name) == 2) {
        next->mig = -1;
        script.gpus++;
    } else if (script.gpus) {
        read_gpu_line(next - 1, line);
    }
}

static int load(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    if (!file)
        return LIBRARY_NOT_FOUND;
    memset(&script, 0, sizeof script);
    while (fgets(line, sizeof line, file))
        read_line(line);
    fclose(file);
    return SUCCESS;
}

static int ready(void) {
    int code = load();
    if (code)
        return code;
    if (!users)
        return UNINITIALIZED;
    return script.epoch == epoch_at_init ? SUCCESS : script.epoch_code;
}

/* The device, or a code in *code. */
static gpu *asked(void *handle, const char *call, int *code) {
    size_t index = (size_t)handle - 1;
    if ((*code = ready()))
        return NULL;
    if (index >= (size_t)script.gpus) {
        *code = INVALID_ARGUMENT;
        return NULL;
    }
    for (int i = 0; i < script.gpu[index].failures; i++)
        if (!strcmp(script.gpu[index].failure[i].call, call)) {
            *code = script.gpu[index].failure[i].code;
            return NULL;
        }
    return &script.gpu[index];
}

int nvmlInitWithFlags(unsigned flags) {
    int code = load();
    (void)flags;
    init_calls++;
    if (code || (code = script.init))
        return code;
    users++;
    epoch_at_init = script.epoch;
    return SUCCESS;
}

int nvmlShutdown(void) {
    shutdown_calls++;
    if (!users)
        return UNINITIALIZED;
    users--;
    return SUCCESS;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    int code = ready();
    if (code || (code = script.count_code))
        return code;
    *count = (unsigned)script.gpus;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    int code;
    *handle = (void *)(size_t)(index + 1);
    return asked(*handle, "handle", &code) ? SUCCESS : code;
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    int code;
    gpu *g = asked(handle, "uuid", &code);
    if (g)
        snprintf(text, size, "%s", g->uuid);
    return code;
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    int code;
    gpu *g = asked(handle, "name", &code);
    if (g)
        snprintf(text, size, "%s", g->name);
    return code;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
    int code;
    gpu *g = asked(handle, "memory_v1", &code);
    if (g)
        *memory = (memory_v1){g->total, g->free, g->used + g->reserved};
    return code;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    int code;
    gpu *g = asked(handle, "memory_v2", &code);
    if (g && memory->version != MEMORY_V2)
        return ARGUMENT_VERSION_MISMATCH;
    if (g)
        *memory = (memory_v2){MEMORY_V2, g->total, g->reserved, g->free, g->used};
    return code;
}
#endif

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    int code;
    gpu *g = asked(handle, "capability", &code);
    if (g) {
        *major = g->major;
        *minor = g->minor;
    }
    return code;
}

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int code;
    gpu *g = asked(handle, "mig", &code);
    if (g && g->mig < 0)
        return NOT_SUPPORTED;
    if (g)
        *current = *pending = (unsigned)g->mig;
    return code;
}

static int list_processes(void *handle, unsigned *count, process *processes) {
    int code;
    gpu *g = asked(handle, processes ? "processes_fill" : "processes", &code);
    if (!g)
        return code;
    if (*count < (unsigned)g->processes || !processes) {
        *count = (unsigned)g->processes;
        return g->processes ? INSUFFICIENT_SIZE : SUCCESS;
    }
    memcpy(processes, g->process, (size_t)g->processes * sizeof *processes);
    *count = (unsigned)g->processes;
    return SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v2(void *handle, unsigned *count, process *processes) {
    return list_processes(handle, count, processes);
}

#ifndef OLD_DRIVER
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process *processes) {
    return list_processes(handle, count, processes);
}
#endif
