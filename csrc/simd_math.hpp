// Vector exp and log: GCC may call libmvec for these declarations inside `omp simd` loops, without -ffast-math.
// Include before <cmath>. Elsewhere (clang, other processors) the loops stay scalar and give the same results.
#pragma once

#include <cstddef>  // defines __GLIBC__ where there is one

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
extern "C" {
__attribute__((simd("notinbranch"))) double exp(double) noexcept;
__attribute__((simd("notinbranch"))) double log(double) noexcept;
}
#ifdef PYSCALING_NO_CLONES  // sanitizers: the choice among clones runs before their runtime is there
#define PYSCALING_CLONES
#else
#define PYSCALING_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
#else
#define PYSCALING_CLONES
#endif

#include <cmath>
