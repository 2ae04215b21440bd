// What libdanet_cuda.so was built with, for danet.ops.info(), which asks before the library is used.

extern "C" __attribute__((visibility("default"))) const char* danet_cuda_version() { return DANET_CUDA_VERSION; }
extern "C" __attribute__((visibility("default"))) const char* danet_cuda_architectures() {
  return DANET_CUDA_ARCHITECTURES;
}
