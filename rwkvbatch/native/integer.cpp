// The integer kernels of one instruction set. Compiled once for each, with RWKV_ISA naming it.
#include "kernels.hpp"

#include "integer.hpp"

namespace rwkv {
namespace {

constexpr IntegerKernels KERNELS = {RWKV_ISA::quantize, RWKV_ISA::integer_linear};

}  // namespace

#if defined(RWKV_ISA_AVX512) && defined(RWKV_VNNI)
const IntegerKernels* avx512vnni_integer_kernels() {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512vnni") ? &KERNELS : nullptr;
}
#elif defined(RWKV_ISA_AVX512)
const IntegerKernels* avx512_integer_kernels() { return &KERNELS; }
#elif defined(RWKV_VNNI)
const IntegerKernels* avxvnni_integer_kernels() {
    uint32_t eax = 7, ebx = 0, ecx = 1, edx = 0;  // AVX-VNNI is bit 4 of eax in leaf 7, subleaf 1
    __asm__("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    return (eax >> 4 & 1u) != 0 ? &KERNELS : nullptr;
}
#elif defined(RWKV_ISA_AVX2)
const IntegerKernels* avx2_integer_kernels() { return &KERNELS; }
#else
const IntegerKernels* portable_integer_kernels() { return &KERNELS; }
#endif

}  // namespace rwkv
