// What libdanet_cuda.so was built with, for danet.ops.info(), which asks before the library is used.

#define DANET_FACT extern "C" __attribute__((visibility("default")))

DANET_FACT const char* danet_cuda_version() { return DANET_CUDA_VERSION; }
DANET_FACT const char* danet_cuda_architectures() { return DANET_CUDA_ARCHITECTURES; }

// For build_tools/hub.py, which finds it in the file.
DANET_FACT const char danet_cuda_facts[];
const char danet_cuda_facts[] = "danet_cuda_facts:" DANET_CUDA_VERSION ":" DANET_CUDA_ARCHITECTURES;
