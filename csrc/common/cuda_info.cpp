// The CUDA version and GPU architectures that libdanet_cuda.so was built for. danet.ops.info() calls these functions.

#define DANET_EXPORT extern "C" __attribute__((visibility("default")))

DANET_EXPORT const char* danet_cuda_version() { return DANET_CUDA_VERSION; }
DANET_EXPORT const char* danet_cuda_architectures() { return DANET_CUDA_ARCHITECTURES; }

// The same as one string: build_tools/hub.py searches the library file for it, because the library may not load there.
DANET_EXPORT const char danet_cuda_facts[];
const char danet_cuda_facts[] = "danet_cuda_facts:" DANET_CUDA_VERSION ":" DANET_CUDA_ARCHITECTURES;
