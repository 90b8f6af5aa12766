// The integer kernels of one instruction set. Compiled once for each instruction set, which RWKV_ISA names.
#include "kernels.hpp"

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include "integer.hpp"

namespace rwkv {
namespace {

constexpr IntegerKernels KERNELS = {RWKV_ISA::quantize, RWKV_ISA::integer_linear, RWKV_ISA::gather};

#if defined(RWKV_DOT) && defined(__APPLE__)
bool has_feature(const char* name) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
bool has_dot_products() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
[[maybe_unused]] bool has_matrix_products() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(RWKV_DOT) && defined(__linux__)
bool has_dot_products() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
[[maybe_unused]] bool has_matrix_products() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#elif defined(RWKV_DOT)
bool has_dot_products() { return false; }
[[maybe_unused]] bool has_matrix_products() { return false; }
#endif

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
#elif defined(RWKV_MATRIX)
const IntegerKernels* neoni8mm_integer_kernels() {
    return has_dot_products() && has_matrix_products() ? &KERNELS : nullptr;
}
#elif defined(RWKV_DOT)
const IntegerKernels* neondot_integer_kernels() { return has_dot_products() ? &KERNELS : nullptr; }
#elif defined(RWKV_ISA_NEON)
const IntegerKernels* neon_integer_kernels() { return &KERNELS; }
#else
const IntegerKernels* portable_integer_kernels() { return &KERNELS; }
#endif

}  // namespace rwkv
