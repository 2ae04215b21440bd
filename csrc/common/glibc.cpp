// Lets a library that is built where glibc and libstdc++ are new run where they are older (manylinux). What newer
// headers ask of them and older ones lack is had here in another way; `make wheel` says how old they may be.
#include <cmath>
#include <sstream>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// glibc 2.32, for shared_ptr: whether its counts need be atomic. Always.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// GCC 9's libstdc++.
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();

// glibc 2.29 has a new exp, which leaves errno alone; linked with --wrap=exp.
#if defined(__x86_64__)
__asm__(".symver danet_old_exp, exp@GLIBC_2.2.5");
#elif defined(__aarch64__)
__asm__(".symver danet_old_exp, exp@GLIBC_2.17");
#else
#define danet_old_exp __real_exp
#endif
extern "C" double danet_old_exp(double);
extern "C" __attribute__((visibility("hidden"))) double __wrap_exp(double x) { return danet_old_exp(x); }

#endif
