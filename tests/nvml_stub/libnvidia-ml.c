/* A stand-in for NVIDIA's management library, scripted by a text file.
 *
 * The file named by NVML_STUB is read again at every call, so a test changes a GPU in mid-flight
 * (write it aside and rename it, for a call may read it at any moment).
 * Without it the library answers as if there were no driver library at all.
 *
 *   driver EPOCH CODE                  another EPOCH than at nvmlInit: every call answers CODE
 *   die AT CODE                        so does every call once stub_calls() has reached AT
 *   version TEXT                       of the driver; without this line: not supported
 *   gpu UUID NAME WITH SPACES          one more device
 *   instance UUID GI CI NAME           one more MIG instance of it; UUID "-": an unused place
 *
 * and below each gpu or instance, whatever its driver tells; what has no line is not supported:
 *
 *     memory TOTAL RESERVED FREE USED  bytes; version 1 of the structure counts reserved as used
 *     capability MAJOR MINOR
 *     mig 0|1
 *     slices GPU COMPUTE MB            of a MIG instance
 *     process PID BYTES|- [KIND [GI CI]]   "-": the driver does not tell; KIND: compute graphics mps
 *     vanish N                         so many processes end between being counted and listed
 *     fail CALL CODE                   CALL answers CODE
 *     slow CALL MILLISECONDS           CALL takes so long, or until the script says otherwise
 *
 * CALL: handle uuid name memory_v1 memory_v2 capability mig mig_count mig_handle gpu_instance
 * compute_instance attributes compute graphics mps, and the latter three with "_fill" for the call
 * that lists after the one that counts. Above the first gpu: init shutdown count version.
 *
 * Layouts and codes are those of nvml.h as nvidia-ml-py 12.560 declares them. With OLD_DRIVER
 * defined the library lacks the calls that came with driver 510.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       INSUFFICIENT_SIZE = 7, LIBRARY_NOT_FOUND = 12, ARGUMENT_VERSION_MISMATCH = 25 };
enum { MAX_DEVICES = 64, MAX_PROCESSES = 64, MAX_RULES = 16, MEMORY_V2 = 0x02000028,
       MAX_MIG_INSTANCES = 7, POLL_MILLISECONDS = 5 };
enum { LIBRARY = 0 }; /* what is no device's own stands in the first place */

typedef unsigned long long bytes;
typedef struct { bytes total, free, used; } memory_v1;
typedef struct { unsigned version; bytes total, reserved, free, used; } memory_v2;
typedef struct { unsigned pid; bytes used; unsigned gpu_instance, compute_instance; } process;
typedef struct { unsigned counts[6], gpu_slices, compute_slices; bytes megabytes; } attributes;

typedef struct { char call[32]; int code, milliseconds; } rule;
typedef struct {
    int parent, gpu_instance, compute_instance, gpu_slices, compute_slices;
    char uuid[96], name[96];
    bytes total, reserved, free, used, megabytes;
    int has_memory, major, minor, mig, processes, vanish, rules;
    process process[MAX_PROCESSES];
    char kind[MAX_PROCESSES][16];
    rule rule[MAX_RULES];
} device;

/* Of each thread its own, since one may hang in a call while another reads. */
static _Thread_local struct {
    int epoch, epoch_code, die_at, die_code, devices;
    char version[96];
    device device[MAX_DEVICES];
} script;

static int users, epoch_at_init;
static int calls, init_calls;

int stub_calls(void) { return calls; }
int stub_init_calls(void) { return init_calls; }
int stub_users(void) { return users; }

/* ---- the script ---- */

static void read_process(device *d, const char *line) {
    process p = {0, 0, ~0u, ~0u};
    char kind[16] = "compute", used[32];
    if (d->processes == MAX_PROCESSES
        || sscanf(line, " process %u %31s %15s %u %u", &p.pid, used, kind, &p.gpu_instance,
                  &p.compute_instance) < 2)
        return;
    p.used = used[0] == '-' ? ~0ULL : strtoull(used, NULL, 10);
    strcpy(d->kind[d->processes], kind);
    d->process[d->processes++] = p;
}

static void read_device_line(device *d, const char *line) {
    rule *r = &d->rule[d->rules];
    *r = (rule){{0}, 0, 0};
    if (sscanf(line, " memory %llu %llu %llu %llu", &d->total, &d->reserved, &d->free, &d->used) == 4)
        d->has_memory = 1;
    sscanf(line, " capability %d %d", &d->major, &d->minor);
    sscanf(line, " mig %d", &d->mig);
    sscanf(line, " slices %d %d %llu", &d->gpu_slices, &d->compute_slices, &d->megabytes);
    sscanf(line, " vanish %d", &d->vanish);
    read_process(d, line);
    if (d->rules < MAX_RULES - 1
        && (sscanf(line, " fail %31s %d", r->call, &r->code) == 2
            || sscanf(line, " slow %31s %d", r->call, &r->milliseconds) == 2))
        d->rules++;
}

static void read_line(const char *line) {
    device *next = &script.device[script.devices], *last = next - 1;
    int parent = last->parent ? last->parent : script.devices - 1;
    if (script.devices < MAX_DEVICES) {
        memset(next, 0, sizeof *next);
        next->mig = -1;
        if (sscanf(line, "gpu %95s %95[^\n]", next->uuid, next->name) == 2) {
            script.devices++;
            return;
        }
        if (sscanf(line, " instance %95s %d %d %95[^\n]", next->uuid, &next->gpu_instance,
                   &next->compute_instance, next->name) >= 1) {
            next->parent = parent;
            script.devices++;
            return;
        }
    }
    sscanf(line, "driver %d %d", &script.epoch, &script.epoch_code);
    sscanf(line, "die %d %d", &script.die_at, &script.die_code);
    sscanf(line, "version %95[^\n]", script.version);
    read_device_line(last, line);
}

static int load(void) {
    const char *path = getenv("NVML_STUB");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[256];
    if (!file)
        return LIBRARY_NOT_FOUND;
    script.epoch = script.epoch_code = script.die_at = script.die_code = 0;
    script.version[0] = 0;
    memset(&script.device[LIBRARY], 0, sizeof(device));
    script.devices = 1;
    while (fgets(line, sizeof line, file))
        read_line(line);
    fclose(file);
    return SUCCESS;
}

/* ---- answering ---- */

static int state_of_the_driver(const char *call) {
    int code = load();
    if (code)
        return code;
    if (script.die_at && calls >= script.die_at)
        return script.die_code;
    if (!strcmp(call, "init"))
        return SUCCESS;
    if (!users)
        return UNINITIALIZED;
    return script.epoch == epoch_at_init ? SUCCESS : script.epoch_code;
}

/* The code that a call is to answer; its device, if the code is 0. */
static int ask(size_t index, const char *call, device **asked) {
    calls++;
    for (int waited = 0;; waited += POLL_MILLISECONDS) {
        int code = state_of_the_driver(call), milliseconds = 0;
        if (!code && index >= (size_t)script.devices)
            code = INVALID_ARGUMENT;
        *asked = &script.device[code ? LIBRARY : index];
        for (int i = 0; !code && i < (*asked)->rules; i++)
            if (!strcmp((*asked)->rule[i].call, call)) {
                milliseconds = (*asked)->rule[i].milliseconds;
                code = (*asked)->rule[i].code;
            }
        if (waited >= milliseconds)
            return code;
        usleep(POLL_MILLISECONDS * 1000);
    }
}

static size_t nth_child(size_t parent, unsigned n) {
    for (size_t i = 1; i < (size_t)script.devices; i++)
        if ((size_t)script.device[i].parent == parent && !n--)
            return i;
    return MAX_DEVICES;
}

static int copy_text(void *handle, const char *call, const char *text, char *to, unsigned size) {
    device *d;
    int code = ask((size_t)handle, call, &d);
    if (!code)
        snprintf(to, size, "%s", !strcmp(text, "uuid") ? d->uuid : d->name);
    return code;
}

static int copy_number(void *handle, const char *call, unsigned *to, int (*read)(device *)) {
    device *d;
    int code = ask((size_t)handle, call, &d);
    if (!code && read(d) < 0)
        return NOT_SUPPORTED;
    if (!code)
        *to = (unsigned)read(d);
    return code;
}

/* ---- nvml.h ---- */

int nvmlInitWithFlags(unsigned flags) {
    device *d;
    int code = ask(LIBRARY, "init", &d);
    (void)flags;
    init_calls++;
    if (!code) {
        users++;
        epoch_at_init = script.epoch;
    }
    return code;
}

int nvmlShutdown(void) {
    device *d;
    int code = ask(LIBRARY, "shutdown", &d);
    if (users)
        users--;
    return code;
}

int nvmlSystemGetDriverVersion(char *text, unsigned size) {
    device *d;
    int code = ask(LIBRARY, "version", &d);
    if (!code && !script.version[0])
        return NOT_SUPPORTED;
    if (!code)
        snprintf(text, size, "%s", script.version);
    return code;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    device *d;
    int code = ask(LIBRARY, "count", &d);
    for (*count = 0; !code && nth_child(LIBRARY, *count) < MAX_DEVICES;)
        ++*count;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    device *d;
    int code = state_of_the_driver("handle");
    *handle = (void *)nth_child(LIBRARY, index);
    return code ? code : ask((size_t)*handle, "handle", &d);
}

int nvmlDeviceGetUUID(void *handle, char *text, unsigned size) {
    return copy_text(handle, "uuid", "uuid", text, size);
}

int nvmlDeviceGetName(void *handle, char *text, unsigned size) {
    return copy_text(handle, "name", "name", text, size);
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_v1 *memory) {
    device *d;
    int code = ask((size_t)handle, "memory_v1", &d);
    if (!code && !d->has_memory)
        return NOT_SUPPORTED;
    if (!code)
        *memory = (memory_v1){d->total, d->free, d->used + d->reserved};
    return code;
}

#ifndef OLD_DRIVER
int nvmlDeviceGetMemoryInfo_v2(void *handle, memory_v2 *memory) {
    device *d;
    int code = ask((size_t)handle, "memory_v2", &d);
    if (!code && memory->version != MEMORY_V2)
        return ARGUMENT_VERSION_MISMATCH;
    if (!code && !d->has_memory)
        return NOT_SUPPORTED;
    if (!code)
        *memory = (memory_v2){MEMORY_V2, d->total, d->reserved, d->free, d->used};
    return code;
}
#endif

int nvmlDeviceGetCudaComputeCapability(void *handle, int *major, int *minor) {
    device *d;
    int code = ask((size_t)handle, "capability", &d);
    if (!code && !d->major)
        return NOT_SUPPORTED;
    if (!code) {
        *major = d->major;
        *minor = d->minor;
    }
    return code;
}

static int mig_mode(device *d) { return d->mig; }
static int mig_count(device *d) { return d->mig == 1 ? MAX_MIG_INSTANCES : 0; }
static int gpu_instance(device *d) { return d->parent ? d->gpu_instance : -1; }
static int compute_instance(device *d) { return d->parent ? d->compute_instance : -1; }

int nvmlDeviceGetMigMode(void *handle, unsigned *current, unsigned *pending) {
    int code = copy_number(handle, "mig", current, mig_mode);
    *pending = *current;
    return code;
}

int nvmlDeviceGetMaxMigDeviceCount(void *handle, unsigned *count) {
    return copy_number(handle, "mig_count", count, mig_count);
}

int nvmlDeviceGetGpuInstanceId(void *handle, unsigned *id) {
    return copy_number(handle, "gpu_instance", id, gpu_instance);
}

int nvmlDeviceGetComputeInstanceId(void *handle, unsigned *id) {
    return copy_number(handle, "compute_instance", id, compute_instance);
}

int nvmlDeviceGetMigDeviceHandleByIndex(void *handle, unsigned index, void **instance) {
    device *d;
    int code = ask((size_t)handle, "mig_handle", &d);
    size_t child = nth_child((size_t)handle, index);
    if (!code && (child == MAX_DEVICES || !strcmp(script.device[child].uuid, "-")))
        return NOT_FOUND;
    *instance = (void *)child;
    return code;
}

int nvmlDeviceGetAttributes_v2(void *handle, attributes *told) {
    device *d;
    int code = ask((size_t)handle, "attributes", &d);
    if (!code && !d->gpu_slices)
        return NOT_SUPPORTED;
    if (!code)
        *told = (attributes){{0}, (unsigned)d->gpu_slices, (unsigned)d->compute_slices, d->megabytes};
    return code;
}

static int list_processes(void *handle, unsigned *count, process *to, const char *kind,
                          const char *fill) {
    device *d;
    int code = ask((size_t)handle, to ? fill : kind, &d);
    unsigned found = 0;
    if (code)
        return code;
    for (int i = 0; i < d->processes - (to ? d->vanish : 0); i++)
        if (!strcmp(d->kind[i], kind) && found++ < *count && to)
            to[found - 1] = d->process[i];
    code = found > *count ? INSUFFICIENT_SIZE : SUCCESS;
    *count = found;
    return code;
}

#define LISTS(Kind, kind) \
    int nvmlDeviceGet##Kind##RunningProcesses_v2(void *handle, unsigned *count, process *to) { \
        return list_processes(handle, count, to, kind, kind "_fill"); \
    }
#define LISTS_SINCE_510(Kind, kind) \
    int nvmlDeviceGet##Kind##RunningProcesses_v3(void *handle, unsigned *count, process *to) { \
        return list_processes(handle, count, to, kind, kind "_fill"); \
    }

LISTS(Compute, "compute")
LISTS(Graphics, "graphics")
LISTS(MPSCompute, "mps")
#ifndef OLD_DRIVER
LISTS_SINCE_510(Compute, "compute")
LISTS_SINCE_510(Graphics, "graphics")
LISTS_SINCE_510(MPSCompute, "mps")

const char *nvmlErrorString(int code) {
    return code == 666 ? "caf\xe9" : "what the driver calls it";
}
#endif
