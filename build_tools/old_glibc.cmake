# support_old_glibc(TARGET [CUDA_RUNTIME]): lets a library that is built on a new Linux also load on older ones.
#
# A shared library records, for every function that it uses from glibc and libstdc++, the version of that function.
# A system whose glibc lacks one of these versions refuses to load the library. torch itself needs glibc 2.28
# (manylinux_2_28). This file keeps our libraries at that level although they are built with a newer glibc and GCC.
# `make wheel` checks the result with auditwheel. Everything here is unnecessary, and does nothing, without glibc.
#
# Three kinds of symbols would require a newer system:
#
# 1. Symbols that newer headers reference: __libc_single_threaded (glibc 2.32), two constructors that libstdc++ exports
#    since GCC 9, and a function that a std::vector calls since GCC 11. `compatibility_source` defines them inside the
#    library.
# 2. exp, which has a new version in glibc 2.29 that does not set errno. The linker option --wrap=exp redirects every
#    call to __wrap_exp in `compatibility_source`, which calls the old version.
# 3. CUDA_RUNTIME only: the functions of libpthread, libdl and librt that CUDA's static runtime calls. glibc 2.34 moved
#    them into libc and gave them new versions. The old versions still exist: in libpthread.so.0, libdl.so.2 and
#    librt.so.1 on old systems, and in libc on new ones, where these three libraries remain as empty files. Therefore
#    `link_old_thread_libraries` links the target with stub libraries that have the old names and the old versions. Only
#    the linker uses the stubs; at run time the system's own libraries are loaded.
include(CheckCXXSymbolExists)
check_cxx_symbol_exists(__GLIBC__ features.h has_glibc)
check_cxx_symbol_exists(__GLIBCXX__ string has_libstdcxx)

# The oldest glibc version of each architecture, in which exp and the functions of the stubs first appeared.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(old_exp "__asm__(\".symver danet_old_exp, exp@GLIBC_2.2.5\")")
  set(stub_versions "GLIBC_2.2.5 { *; }; GLIBC_2.3.4 { dlmopen; };")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64")
  set(old_exp "__asm__(\".symver danet_old_exp, exp@GLIBC_2.17\")")
  set(stub_versions "GLIBC_2.17 { *; };")
else()
  set(old_exp "#define danet_old_exp __real_exp  // no older version")
endif()

set(compatibility_source "#include <new>
#include <sstream>
// 0: the process may have several threads, so shared_ptr counts atomically.
extern \"C\" __attribute__((visibility(\"hidden\"))) char __libc_single_threaded;
char __libc_single_threaded = 0;
template std::basic_ostringstream<char>::basic_ostringstream();
template std::basic_stringstream<char>::basic_stringstream();
extern \"C\" __attribute__((visibility(\"hidden\"), noreturn)) void _ZSt28__throw_bad_array_new_lengthv() {
  throw std::bad_array_new_length();
}
${old_exp};
extern \"C\" double danet_old_exp(double);
extern \"C\" __attribute__((visibility(\"hidden\"))) double __wrap_exp(double x) { return danet_old_exp(x); }
")
file(GENERATE OUTPUT "${CMAKE_BINARY_DIR}/old_glibc/compatibility.cpp" CONTENT "${compatibility_source}")

# The functions that CUDA's static runtime calls.
set(stub_functions_libdl.so.2 dlclose dlerror dlmopen dlopen dlsym dlvsym)
set(stub_functions_librt.so.1 shm_open shm_unlink)
set(stub_functions_libpthread.so.0
    pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
    pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
    pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
    pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
    pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
    pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
    pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait
    sem_wait)

function(link_old_thread_libraries target)
  set(folder "${CMAKE_BINARY_DIR}/old_glibc")
  file(GENERATE OUTPUT "${folder}/versions.map" CONTENT "${stub_versions}\n")
  foreach(library libpthread.so.0 libdl.so.2 librt.so.1)
    string(REGEX REPLACE "([a-z_]+);?" "void \\1() {}\n" functions "${stub_functions_${library}}")
    file(GENERATE OUTPUT "${folder}/${library}.cpp" CONTENT "extern \"C\" {\n${functions}}\n")
    add_library(old_${library} SHARED "${folder}/${library}.cpp")
    set_target_properties(
      old_${library} PROPERTIES PREFIX "" OUTPUT_NAME ${library} SUFFIX "" LIBRARY_OUTPUT_DIRECTORY "${folder}"
      CXX_VISIBILITY_PRESET default LINK_DEPENDS "${folder}/versions.map")
    target_link_options(old_${library} PRIVATE -nostdlib "LINKER:--version-script=${folder}/versions.map")
    target_link_libraries(${target} PRIVATE old_${library})
  endforeach()
  # Without this option the linker drops the stubs, because libc has the same functions.
  target_link_options(${target} PRIVATE -Wl,--no-as-needed)
endfunction()

function(support_old_glibc target)
  if(has_glibc AND has_libstdcxx)
    target_sources(${target} PRIVATE "${CMAKE_BINARY_DIR}/old_glibc/compatibility.cpp")
    target_link_options(${target} PRIVATE -Wl,--wrap=exp)
  endif()
  if("CUDA_RUNTIME" IN_LIST ARGN AND has_glibc AND stub_versions)
    link_old_thread_libraries(${target})
  endif()
endfunction()
