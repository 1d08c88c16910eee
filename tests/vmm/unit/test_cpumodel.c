/* Unit tests of CPU models: what a model takes away, what it needs, and the topology leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <linux/kvm.h>

#include "vmm/machine/cpumodel.h"

enum { ROOM = 64 };

static struct {
  struct kvm_cpuid2 head;
  struct kvm_cpuid_entry2 entries[ROOM];
} table;
static char err[CPU_ERR_LEN];

static void add(uint32_t leaf, uint32_t index, bool indexed, uint32_t eax, uint32_t ebx, uint32_t ecx, uint32_t edx) {
  table.entries[table.head.nent++] = (struct kvm_cpuid_entry2){.function = leaf,
                                                               .index = index,
                                                               .flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
                                                               .eax = eax,
                                                               .ebx = ebx,
                                                               .ecx = ecx,
                                                               .edx = edx};
}

/* A CPU with everything that has a name, AVX-512 state included. */
static int set_up(void **state) {
  memset(&table, 0, sizeof(table));
  add(0, 0, false, 0xd, 0x756e6547, 0x6c65746e, 0x49656e69); /* GenuineIntel */
  add(1, 0, false, 0x000506e3, 0, 0x7ffffbff, 0xffffffff);
  add(4, 3, true, 0x163, 0x3c0003f, 0x1fff, 0);
  add(7, 0, true, 0, 0xffffffff, 0xffffffff, 0xffffffff);
  add(7, 1, true, 0xffffffff, 0, 0, 0);
  add(0xd, 0, true, 0x2e7, 832, 2696, 0);
  add(0xd, 1, true, 0xf, 0, 0, 0);
  add(0xd, 2, true, 256, 576, 0, 0);
  add(0xd, 5, true, 64, 1088, 0, 0);
  add(0xd, 6, true, 512, 1152, 0, 0);
  add(0xd, 7, true, 1024, 1664, 0, 0);
  add(0xd, 9, true, 8, 2688, 0, 0);
  add(0x40000001, 0, false, 0x1007efb, 0, 0, 0);
  add(0x80000000, 0, false, 0x80000008, 0, 0, 0);
  add(0x80000001, 0, false, 0, 0, 0xffffffff, 0xffffffff);
  add(0x80000008, 0, false, 0x3027, 0, 0, 0);
  return 0;
}

static const struct kvm_cpuid_entry2 *leaf(uint32_t function, uint32_t index) {
  for (uint32_t i = 0; i < table.head.nent; i++)
    if (table.entries[i].function == function && table.entries[i].index == index) return &table.entries[i];
  fail_msg("no leaf 0x%x.%u", function, index);
  return NULL;
}

static int apply(const char *spec, unsigned cpus) {
  struct cpu_model model;
  if (cpu_model_parse(spec, &model, err)) return -1;
  return cpu_model_apply(&model, &table.head, ROOM, cpus, true, err);
}

static void max_keeps_everything(void **state) {
  assert_int_equal(apply("max", 1), 0);
  assert_int_equal(leaf(1, 0)->ecx, 0xfffffbff); /* and says that there is a hypervisor */
  assert_int_equal(leaf(7, 0)->ebx, 0xffffffff);
  assert_int_equal(leaf(0xd, 0)->eax, 0x2e7);
  assert_int_equal(leaf(0xd, 0)->ecx, 2696);
}

static void v1_has_no_later_instructions(void **state) {
  assert_int_equal(apply("x86-64-v1", 1), 0);
  uint32_t ecx = leaf(1, 0)->ecx;
  assert_int_equal(ecx & (1 << 0 | 1 << 9 | 1 << 19 | 1 << 20 | 1 << 23 | 1 << 26 | 1 << 28), 0);
  assert_int_equal(ecx & (1u << 31 | 1 << 21 | 1 << 24), 1u << 31 | 1 << 21 | 1 << 24); /* the platform's stay */
  assert_int_equal(leaf(7, 0)->ebx & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 16), 0);
  assert_int_equal(leaf(0x80000001, 0)->edx & (1 << 29 | 1 << 20 | 1 << 11), 1 << 29 | 1 << 20 | 1 << 11);
  for (uint32_t i = 0; i < table.head.nent; i++) assert_int_not_equal(table.entries[i].function, 0xd);
}

static void v2_has_sse4(void **state) {
  assert_int_equal(apply("x86-64-v2", 1), 0);
  assert_int_equal(leaf(1, 0)->ecx & (1 << 19 | 1 << 20 | 1 << 23 | 1 << 13), 1 << 19 | 1 << 20 | 1 << 23 | 1 << 13);
  assert_int_equal(leaf(1, 0)->ecx & (1 << 28), 0);
}

static void v3_has_avx2_and_its_state_only(void **state) {
  assert_int_equal(apply("x86-64-v3", 1), 0);
  assert_int_equal(leaf(7, 0)->ebx & (1 << 5), 1 << 5);
  assert_int_equal(leaf(7, 0)->ebx & (1 << 16), 0);
  assert_int_equal(leaf(0xd, 0)->eax, 7);
  assert_int_equal(leaf(0xd, 0)->ecx, 832);
  assert_int_equal(leaf(0xd, 7)->eax, 0);
}

static void taking_avx_takes_what_rests_on_it(void **state) {
  assert_int_equal(apply("max,-avx", 1), 0);
  assert_int_equal(leaf(1, 0)->ecx & (1 << 28 | 1 << 12 | 1 << 29), 0);
  assert_int_equal(leaf(7, 0)->ebx & (1 << 5 | 1 << 16 | 1u << 31), 0);
  assert_int_equal(leaf(0xd, 0)->eax, 0x203);
}

#define AVX512_EBX (1u << 16 | 1u << 17 | 1u << 21 | 1u << 28 | 1u << 30 | 1u << 31) /* F DQ IFMA CD BW VL */
#define AVX512_ECX (1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14)              /* VBMI VBMI2 VNNI BITALG VPOPCNTDQ */

static void v4_has_the_first_five_of_avx512(void **state) {
  assert_int_equal(apply("x86-64-v4", 1), 0);
  assert_int_equal(leaf(7, 0)->ebx & AVX512_EBX, AVX512_EBX & ~(1u << 21));
  assert_int_equal(leaf(7, 0)->ecx & AVX512_ECX, 0);
  assert_int_equal(leaf(7, 1)->eax & (1 << 4 | 1 << 5), 0);
  assert_int_equal(leaf(0xd, 0)->eax, 0xe7);
  assert_int_equal(leaf(0xd, 0)->ecx, 2688);
}

static void taking_avx512f_takes_the_rest_of_it(void **state) {
  assert_int_equal(apply("max,-avx512f", 1), 0);
  assert_int_equal(leaf(7, 0)->ebx & AVX512_EBX, 0);
  assert_int_equal(leaf(7, 0)->ecx & AVX512_ECX, 0);
  assert_int_equal(leaf(7, 0)->edx & 1 << 23, 0);             /* FP16 */
  assert_int_equal(leaf(7, 1)->eax & (1 << 4 | 1 << 5), 1 << 4); /* AVX-VNNI stays, BF16 goes */
  assert_int_equal(leaf(7, 0)->ecx & (1 << 8 | 1 << 9), 1 << 8 | 1 << 9);
  assert_int_equal(leaf(0xd, 0)->eax, 0x207);
}

static void taking_avx512vl_takes_what_rests_on_it(void **state) {
  assert_int_equal(apply("max,-avx512vl", 1), 0);
  assert_int_equal(leaf(7, 0)->ebx & AVX512_EBX, AVX512_EBX & ~(1u << 31));
  assert_int_equal(leaf(7, 0)->ecx & AVX512_ECX, 1 << 1 | 1 << 14);
  assert_int_equal(leaf(0xd, 0)->eax, 0x2e7);
}

static void taking_xsave_takes_its_relatives(void **state) {
  assert_int_equal(apply("max,-xsave", 1), 0);
  assert_int_equal(leaf(1, 0)->ecx & (1 << 26 | 1 << 28), 0);
  assert_int_equal(leaf(7, 0)->ebx & (1 << 5 | 1 << 16), 0);
  for (uint32_t i = 0; i < table.head.nent; i++) assert_int_not_equal(table.entries[i].function, 0xd);
}

static void what_is_missing_is_refused(void **state) {
  table.entries[1].ecx &= ~(1u << 28);
  assert_int_equal(apply("x86-64-v3", 1), -1);
  assert_non_null(strstr(err, "'avx'"));
  set_up(NULL);
  table.entries[3].ebx &= ~(1u << 29);
  assert_int_equal(apply("x86-64-v2,+sha", 1), -1);
  assert_non_null(strstr(err, "'sha'"));
  set_up(NULL);
  assert_int_equal(apply("x86-64-v2,+sha", 1), 0);
  assert_int_equal(leaf(7, 0)->ebx & 1 << 29, 1 << 29);
}

static void bad_words(void **state) {
  struct cpu_model model;
  static const char *const bad[] = {"", "pentium9", "max,+nothing", "max,vendor=via", "+"};
  for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) assert_int_equal(cpu_model_parse(bad[i], &model, err), -1);
}

static void topology_of_six(void **state) {
  assert_int_equal(apply("max", 6), 0);
  cpu_model_number(&table.head, 5);
  assert_int_equal(leaf(1, 0)->ebx >> 24, 5);
  assert_int_equal(leaf(1, 0)->ebx >> 16 & 0xff, 6);
  assert_int_equal(leaf(1, 0)->edx & 1 << 28, 1 << 28);
  assert_int_equal(leaf(0xb, 0)->eax, 0);
  assert_int_equal(leaf(0xb, 0)->ecx, 0x100);
  assert_int_equal(leaf(0xb, 1)->eax, 3); /* 6 cores need 3 bits */
  assert_int_equal(leaf(0xb, 1)->ebx, 6);
  assert_int_equal(leaf(0xb, 1)->ecx, 0x201);
  assert_int_equal(leaf(0xb, 2)->ecx, 2);
  for (uint32_t i = 0; i < 3; i++) assert_int_equal(leaf(0xb, i)->edx, 5);
  assert_int_equal(leaf(4, 3)->eax >> 26, 7);
  assert_int_equal(leaf(4, 3)->eax >> 14 & 0xfff, 7); /* the third level is shared */
}

static void another_vendor(void **state) {
  assert_int_equal(apply("max,vendor=amd", 4), 0);
  assert_memory_equal(&leaf(0, 0)->ebx, "Auth", 4);
  assert_memory_equal(&leaf(0x80000000, 0)->edx, "enti", 4);
  assert_int_equal(leaf(0x80000000, 0)->eax, 0x80000021);
  assert_int_equal(leaf(0x80000008, 0)->ecx & 0xf0ff, 0x2003);
  cpu_model_number(&table.head, 3);
  assert_int_equal(leaf(0x8000001e, 0)->eax, 3);
  assert_int_equal(cpu_model_phys_bits(&table.head), 0x27);
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup(f, set_up)
  const struct CMUnitTest tests[] = {
      TEST(max_keeps_everything),
      TEST(v1_has_no_later_instructions),
      TEST(v2_has_sse4),
      TEST(v3_has_avx2_and_its_state_only),
      TEST(taking_avx_takes_what_rests_on_it),
      TEST(v4_has_the_first_five_of_avx512),
      TEST(taking_avx512f_takes_the_rest_of_it),
      TEST(taking_avx512vl_takes_what_rests_on_it),
      TEST(taking_xsave_takes_its_relatives),
      TEST(what_is_missing_is_refused),
      TEST(bad_words),
      TEST(topology_of_six),
      TEST(another_vendor),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
