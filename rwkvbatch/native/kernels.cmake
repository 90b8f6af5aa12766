# Sets SOURCES (sources that need no Python), KERNELS (objects for each instruction set of the target processor; for an unknown
# processor only the portable ones), and flags for other sources: EXACT, SANITIZE.

# -ffp-contract=off: the compiler does not fuse a multiply and an add, on any instruction set; only fma in the source does.
set(EXACT -ffp-contract=off -Wall -Wextra)
set(ARITHMETIC -O3 ${EXACT} -fno-math-errno)
if(RWKVBATCH_SANITIZE)
  # At -O3, compiling the checks in fully unrolled register tiles takes many minutes.
  set(SANITIZE -fsanitize=address,undefined -fno-omit-frame-pointer -g1 -O1)
  list(APPEND ARITHMETIC ${SANITIZE})
endif()

function(rwkv_object name source isa)
  add_library(${name} OBJECT ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source})
  string(TOUPPER ${isa} upper)
  target_compile_definitions(${name} PRIVATE RWKV_ISA=${isa} RWKV_ISA_${upper})
  target_compile_options(${name} PRIVATE ${ARITHMETIC} ${ARGN})
  set_target_properties(${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
endfunction()

function(rwkv_kernels isa)
  rwkv_object(kernels_${isa} kernels.cpp ${isa} ${ARGN})
  rwkv_object(integer_${isa} integer.cpp ${isa} ${ARGN})
  rwkv_object(packing_${isa} packing.cpp ${isa} ${ARGN})
endfunction()

rwkv_kernels(portable)
set(KERNELS $<TARGET_OBJECTS:kernels_portable> $<TARGET_OBJECTS:integer_portable> $<TARGET_OBJECTS:packing_portable>)
# On macOS the target processor may differ from the machine's.
set(PROCESSOR ${CMAKE_SYSTEM_PROCESSOR})
if(CMAKE_OSX_ARCHITECTURES)
  set(PROCESSOR ${CMAKE_OSX_ARCHITECTURES})
endif()
# Only this file decides which kernels exist: a compiler may support an instruction set for which there are none.
if(PROCESSOR MATCHES "x86_64|AMD64|amd64")
  add_compile_definitions(RWKV_X86)
  set(AVX2 -mavx2 -mfma -mf16c -mtune=haswell)
  set(AVX512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx2 -mfma -mf16c -mprefer-vector-width=512
    -Wno-uninitialized -Wno-maybe-uninitialized)  # warnings in the compiler's own intrinsics
  rwkv_kernels(avx2 ${AVX2})
  rwkv_kernels(avx512 ${AVX512})
  # Integer kernels with the instruction for byte products, as separate instruction sets.
  rwkv_object(integer_avxvnni integer.cpp avxvnni ${AVX2} -mavxvnni)
  rwkv_object(integer_avx512vnni integer.cpp avx512vnni ${AVX512} -mavx512vnni)
  target_compile_definitions(integer_avxvnni PRIVATE RWKV_ISA_AVX2 RWKV_VNNI)
  target_compile_definitions(integer_avx512vnni PRIVATE RWKV_ISA_AVX512 RWKV_VNNI)
  # Matrix products of bytes, for many rows only.
  rwkv_object(amx_avx512amx amx.cpp avx512amx ${AVX512} -mavx512vnni -mamx-tile -mamx-int8)
  target_compile_definitions(amx_avx512amx PRIVATE RWKV_ISA_AVX512 RWKV_VNNI)
  foreach(part kernels_avx2 integer_avx2 integer_avxvnni packing_avx2 kernels_avx512 integer_avx512 integer_avx512vnni
      amx_avx512amx packing_avx512)
    list(APPEND KERNELS $<TARGET_OBJECTS:${part}>)
  endforeach()
elseif(PROCESSOR MATCHES "aarch64|arm64|ARM64")
  add_compile_definitions(RWKV_ARM64)
  # Without it, GCC moves all loads of a tile's inputs to the front, for which there are too few registers.
  set(NEON $<$<CXX_COMPILER_ID:GNU>:-fno-schedule-insns>)
  rwkv_kernels(neon ${NEON})
  rwkv_object(integer_neondot integer.cpp neondot ${NEON} -march=armv8.2-a+dotprod)
  rwkv_object(integer_neoni8mm integer.cpp neoni8mm ${NEON} -march=armv8.2-a+dotprod+i8mm)
  target_compile_definitions(integer_neondot PRIVATE RWKV_ISA_NEON RWKV_DOT)
  target_compile_definitions(integer_neoni8mm PRIVATE RWKV_ISA_NEON RWKV_DOT RWKV_MATRIX)
  foreach(part kernels_neon integer_neon integer_neondot integer_neoni8mm packing_neon)
    list(APPEND KERNELS $<TARGET_OBJECTS:${part}>)
  endforeach()
endif()

set(SOURCES program.cpp context.cpp weights.cpp threads.cpp memory.cpp)
list(TRANSFORM SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)
