# Lets a library with CUDA's static runtime, which is linked where glibc is new, load where it is old (manylinux).
#
# glibc 2.34 moved libpthread, libdl and librt into libc and gave their functions new versions. What is linked there asks
# for these, and so loads on no older system. Libraries of the old names remain on new ones, empty, and libc has the old
# versions as well: linked against what those libraries looked like, a library loads on both sides of 2.34.

set(functions_libdl.so.2 dlclose dlerror dlmopen dlopen dlsym dlvsym)
set(functions_librt.so.1 shm_open shm_unlink)
set(functions_libpthread.so.0
    pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
    pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
    pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
    pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
    pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
    pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
    pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait
    sem_wait)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(versions_of_old_glibc "GLIBC_2.2.5 { *; }; GLIBC_2.3.4 { dlmopen; };")
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64")
  set(versions_of_old_glibc "GLIBC_2.17 { *; };")
endif()

function(link_old_glibc target)
  if(NOT versions_of_old_glibc)
    return()
  endif()
  set(folder "${CMAKE_BINARY_DIR}/old_glibc")
  file(GENERATE OUTPUT "${folder}/versions.map" CONTENT "${versions_of_old_glibc}\n")
  foreach(library libpthread.so.0 libdl.so.2 librt.so.1)
    string(REGEX REPLACE "([a-z_]+);?" "void \\1() {}\n" functions "${functions_${library}}")
    file(GENERATE OUTPUT "${folder}/${library}.cpp" CONTENT "extern \"C\" {\n${functions}}\n")
    add_library(old_${library} SHARED "${folder}/${library}.cpp")
    set_target_properties(
      old_${library} PROPERTIES PREFIX "" OUTPUT_NAME ${library} SUFFIX "" LIBRARY_OUTPUT_DIRECTORY "${folder}"
      CXX_VISIBILITY_PRESET default LINK_DEPENDS "${folder}/versions.map")
    target_link_options(old_${library} PRIVATE -nostdlib "LINKER:--version-script=${folder}/versions.map")
    target_link_libraries(${target} PRIVATE old_${library})
  endforeach()
endfunction()
