/* What CPUID shows works: one instruction of each feature runs without #UD; and is #UD where CPUID hides the feature. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "guest.h"

enum { EAX, EBX, ECX, EDX };

/* X(name, leaf, sub-leaf, register, bit, instruction) */
/* clang-format off */
#define FEATURES(X)                                                                                                              \
  X(cmov, 1, 0, EDX, 15, "cmovne %eax, %ecx")                                                                                    \
  X(mmx, 1, 0, EDX, 23, "paddd %mm0, %mm1")                                                                                      \
  X(fxsr, 1, 0, EDX, 24, "fxsave 0x6000")                                                                                        \
  X(sse, 1, 0, EDX, 25, "addps %xmm0, %xmm1")                                                                                    \
  X(sse2, 1, 0, EDX, 26, "addpd %xmm0, %xmm1")                                                                                   \
  X(sse3, 1, 0, ECX, 0, "haddps %xmm0, %xmm1")                                                                                   \
  X(pclmulqdq, 1, 0, ECX, 1, "pclmulqdq $0, %xmm0, %xmm1")                                                                       \
  X(ssse3, 1, 0, ECX, 9, "pshufb %xmm0, %xmm1")                                                                                  \
  X(fma, 1, 0, ECX, 12, "vfmadd132ps %ymm0, %ymm1, %ymm2")                                                                       \
  X(cx16, 1, 0, ECX, 13, "cmpxchg16b 0x6000")                                                                                    \
  X(sse41, 1, 0, ECX, 19, "pmulld %xmm0, %xmm1")                                                                                 \
  X(sse42, 1, 0, ECX, 20, "crc32b %al, %ecx")                                                                                    \
  X(movbe, 1, 0, ECX, 22, "movbe 0x6000, %eax")                                                                                  \
  X(popcnt, 1, 0, ECX, 23, "popcnt %eax, %ecx")                                                                                  \
  X(aes, 1, 0, ECX, 25, "aesenc %xmm0, %xmm1")                                                                                   \
  X(xsave, 1, 0, ECX, 26, "xor %ecx, %ecx; xgetbv")                                                                              \
  X(avx, 1, 0, ECX, 28, "vaddps %ymm0, %ymm1, %ymm2")                                                                            \
  X(f16c, 1, 0, ECX, 29, "vcvtph2ps %xmm0, %ymm1")                                                                               \
  X(rdrand, 1, 0, ECX, 30, "rdrand %eax")                                                                                        \
  X(fsgsbase, 7, 0, EBX, 0, "rdfsbase %rax")                                                                                     \
  X(bmi1, 7, 0, EBX, 3, "andn %eax, %ecx, %edx")                                                                                 \
  X(avx2, 7, 0, EBX, 5, "vpaddd %ymm0, %ymm1, %ymm2")                                                                            \
  X(bmi2, 7, 0, EBX, 8, "pdep %eax, %ecx, %edx")                                                                                 \
  X(invpcid, 7, 0, EBX, 10, "mov $2, %eax; movq $0, 0x6000; movq $0, 0x6008; invpcid 0x6000, %rax")                              \
  X(avx512f, 7, 0, EBX, 16, "vaddps %zmm0, %zmm1, %zmm2")                                                                        \
  X(avx512dq, 7, 0, EBX, 17, "vandps %zmm0, %zmm1, %zmm2")                                                                       \
  X(rdseed, 7, 0, EBX, 18, "rdseed %eax")                                                                                        \
  X(adx, 7, 0, EBX, 19, "adcx %eax, %ecx")                                                                                       \
  X(smap, 7, 0, EBX, 20, "clac")                                                                                                 \
  X(avx512_ifma, 7, 0, EBX, 21, "vpmadd52luq %zmm0, %zmm1, %zmm2")                                                               \
  X(clflushopt, 7, 0, EBX, 23, "clflushopt 0x6000")                                                                              \
  X(clwb, 7, 0, EBX, 24, "clwb 0x6000")                                                                                          \
  X(avx512cd, 7, 0, EBX, 28, "vpconflictd %zmm0, %zmm1")                                                                         \
  X(sha, 7, 0, EBX, 29, "sha1msg1 %xmm0, %xmm1")                                                                                 \
  X(avx512bw, 7, 0, EBX, 30, "vpaddb %zmm0, %zmm1, %zmm2")                                                                       \
  X(avx512_vbmi, 7, 0, ECX, 1, "vpermb %zmm0, %zmm1, %zmm2")                                                                     \
  X(avx512_vbmi2, 7, 0, ECX, 6, "vpcompressb %zmm0, %zmm1{%k1}")                                                                 \
  X(gfni, 7, 0, ECX, 8, "gf2p8mulb %xmm0, %xmm1")                                                                                \
  X(vaes, 7, 0, ECX, 9, "vaesenc %ymm0, %ymm1, %ymm2")                                                                           \
  X(vpclmulqdq, 7, 0, ECX, 10, "vpclmulqdq $0, %ymm0, %ymm1, %ymm2")                                                             \
  X(avx512_vnni, 7, 0, ECX, 11, "vpdpbusd %zmm0, %zmm1, %zmm2")                                                                  \
  X(avx512_bitalg, 7, 0, ECX, 12, "vpopcntb %zmm0, %zmm1")                                                                       \
  X(avx512_vpopcntdq, 7, 0, ECX, 14, "vpopcntd %zmm0, %zmm1")                                                                    \
  X(rdpid, 7, 0, ECX, 22, "rdpid %rax")                                                                                          \
  X(movdiri, 7, 0, ECX, 27, "movdiri %eax, 0x6000")                                                                              \
  X(movdir64b, 7, 0, ECX, 28, "mov $0x6000, %eax; movdir64b 0x6040, %rax")                                                       \
  X(serialize, 7, 0, EDX, 14, ".byte 0x0f, 0x01, 0xe8")                                                                          \
  X(avx512_fp16, 7, 0, EDX, 23, "vaddph %zmm0, %zmm1, %zmm2")                                                                    \
  X(avx_vnni, 7, 1, EAX, 4, "{vex} vpdpbusd %ymm0, %ymm1, %ymm2")                                                                \
  X(avx512_bf16, 7, 1, EAX, 5, "vdpbf16ps %zmm0, %zmm1, %zmm2")                                                                  \
  X(xsaveopt, 0xd, 1, EAX, 0, "xor %eax, %eax; xor %edx, %edx; xsaveopt 0x6000")                                                 \
  X(xsavec, 0xd, 1, EAX, 1, "xor %eax, %eax; xor %edx, %edx; xsavec 0x6000")                                                     \
  X(xsaves, 0xd, 1, EAX, 3, "xor %eax, %eax; xor %edx, %edx; xsaves 0x6000")                                                     \
  X(rdtscp, 0x80000001, 0, EDX, 27, "rdtscp")                                                                                    \
  X(lahf, 0x80000001, 0, ECX, 0, "lahf")                                                                                         \
  X(prefetchw, 0x80000001, 0, ECX, 8, "prefetchw 0x6000")                                                                        \
  X(sse4a, 0x80000001, 0, ECX, 6, "extrq %xmm0, %xmm1")
/* clang-format on */

#define FEATURE_CODE(name, leaf, sub, reg, bit, text) CODE64(f_##name, text "; hlt");
FEATURES(FEATURE_CODE)

static const struct {
  const char *name, *begin, *end;
  uint32_t leaf, sub;
  unsigned reg, bit;
} features[] = {
#define FEATURE_ROW(name, leaf, sub, reg, bit, text) {#name, f_##name##_begin, f_##name##_end, leaf, sub, reg, bit},
    FEATURES(FEATURE_ROW)};

static uint32_t *reg_of(struct kvm_cpuid_entry2 *e, unsigned reg) {
  return reg == EAX ? &e->eax : reg == EBX ? &e->ebx : reg == ECX ? &e->ecx : &e->edx;
}

/* #UD or not, with SSE, AVX and all XCR0 components switched on. */
static int run_feature(size_t k, struct cpuid_table *t) {
  struct guest g;
  struct kvm_sregs s;
  struct kvm_cpuid_entry2 *d = cpuid_entry(t, 0xd, 0);
  struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs[0].value = d ? d->eax : 1};
  guest_open(&g, 1, false);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_CPUID2, t), 0);
  guest_code64(&g, 0, features[k].begin, features[k].end);
  guest_catch_exceptions(&g, true);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_SREGS, &s), 0);
  s.cr4 |= 0x600 | 1 << 16;
  if (cpuid_entry(t, 1, 0)->ecx & 1u << 26) s.cr4 |= 1 << 18;
  if (!(cpuid_entry(t, 7, 0)->ebx & 1)) s.cr4 &= ~(1ull << 16);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_SREGS, &s), 0);
  guest_ioctl(g.cpu[0], KVM_SET_XCRS, &x);
  int v = guest_run_vector(&g);
  guest_close(&g);
  return v;
}

static void shown_features_run(void **state) {
  struct guest g;
  struct cpuid_table t;
  unsigned bad = 0, shown = 0;
  guest_open(&g, 0, false);
  guest_supported(&g, &t);
  guest_close(&g);
  for (size_t k = 0; k < sizeof(features) / sizeof(features[0]); k++) {
    struct kvm_cpuid_entry2 *e = cpuid_entry(&t, features[k].leaf, features[k].sub);
    uint32_t *reg = e ? reg_of(e, features[k].reg) : NULL;
    if (!reg || !(*reg >> features[k].bit & 1)) continue;
    shown++;
    int v = run_feature(k, &t);
    if (v != -1) print_error("%s: shown, but vector %d\n", features[k].name, v), bad++;
  }
  assert_int_equal(bad, 0);
  assert_true(shown > 20);
}

/* Hidden ones are #UD, where the encoding means nothing else without the feature. */
static void hidden_features_do_not_run(void **state) {
  static const char *const names[] = {"sse3", "ssse3",  "movbe",   "popcnt",   "aes",  "rdrand", "bmi1", "bmi2",
                                      "adx",  "rdtscp", "invpcid", "fsgsbase", "avx2", "smap",   "clwb"};
  struct guest g;
  struct cpuid_table all;
  unsigned bad = 0;
  guest_open(&g, 0, false);
  guest_supported(&g, &all);
  guest_close(&g);
  for (size_t k = 0; k < sizeof(features) / sizeof(features[0]); k++)
    for (size_t n = 0; n < sizeof(names) / sizeof(names[0]); n++) {
      if (strcmp(names[n], features[k].name) != 0) continue;
      struct cpuid_table t = all;
      *reg_of(cpuid_entry(&t, features[k].leaf, features[k].sub), features[k].reg) &= ~(1u << features[k].bit);
      int v = run_feature(k, &t);
      if (v != 6) print_error("%s: hidden, but vector %d\n", features[k].name, v), bad++;
    }
  assert_int_equal(bad, 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(shown_features_run),
      cmocka_unit_test(hidden_features_do_not_run),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
