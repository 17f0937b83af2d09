/* A libcuda.so.1 that answers what environment variables say, for processes that ask the driver whether there is a GPU.
   Any GPU build of a library finds it too old, or missing what it needs: nothing can be computed with it. */
#include <stdlib.h>

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned int flags) { return setting("FAKE_CUDA_INIT", 0); }

int cuDeviceGetCount(int *count) {
    *count = setting("FAKE_CUDA_DEVICES", 1);
    return setting("FAKE_CUDA_COUNTING", 0);
}

int cuGetErrorString(int status, const char **text) {
    *text = status == 803 ? "system has unsupported display driver" : NULL;
    return *text ? 0 : 1;
}

/* What onnxruntime's CUDA provider links to. */
int cuTensorMapEncodeTiled(void) { return 801; }
