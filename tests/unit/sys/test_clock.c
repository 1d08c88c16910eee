/* Time: TSC offsets and agreement between vCPUs, kvmclock, steal time. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <x86intrin.h>
#include <time.h>
#include <unistd.h>
#include "guest.h"

#define MSR_TSC         0x10
#define MSR_TSC_ADJUST  0x3b
#define MSR_WALL_CLOCK  0x4b564d00
#define MSR_SYSTEM_TIME 0x4b564d01
#define MSR_STEAL_TIME  0x4b564d03
#define PAGE            0x10000u /* of the clock; straddling tests use its end */
#define TSC_STABLE      1
#define GUEST_STOPPED   2

struct time_info {
  uint32_t version, pad0;
  uint64_t tsc_timestamp, system_time;
  uint32_t mul;
  int8_t shift;
  uint8_t flags, pad[2];
} __attribute__((packed));

static uint64_t pvclock(const struct time_info *t, uint64_t tsc) {
  uint64_t delta = tsc - t->tsc_timestamp;
  delta = t->shift < 0 ? delta >> -t->shift : delta << t->shift;
  return t->system_time + (uint64_t)((unsigned __int128)delta * t->mul >> 32);
}

CODE64(rdtsc_hlt, "1: rdtsc; hlt; jmp 1b");

static uint64_t read_tsc(struct guest *g, unsigned cpu) {
  assert_int_equal(guest_run(g, cpu), KVM_EXIT_HLT);
  struct kvm_regs r = guest_regs(g, cpu);
  return r.rdx << 32 | r.rax;
}

static uint64_t offset_of(struct guest *g, unsigned cpu) {
  uint64_t offset = 0;
  struct kvm_device_attr a = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_HAS_DEVICE_ATTR, &a), 0);
  assert_int_equal(guest_ioctl(g->cpu[cpu], KVM_GET_DEVICE_ATTR, &a), 0);
  return offset;
}

static uint64_t now_ns(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void vcpus_share_a_counter(void **state) {
  struct guest g;
  guest_open(&g, 3, true);
  assert_int_equal(offset_of(&g, 0), offset_of(&g, 1));
  assert_int_equal(offset_of(&g, 0), offset_of(&g, 2));
  uint64_t now = guest_get_msr(&g, 0, MSR_TSC);
  assert_true(guest_set_msr(&g, 0, MSR_TSC, now + (1ull << 50)));
  assert_true(guest_set_msr(&g, 1, MSR_TSC, now + (1ull << 50) + 1000)); /* meant to be the same */
  assert_int_equal(offset_of(&g, 0), offset_of(&g, 1));
  assert_int_not_equal(offset_of(&g, 0), offset_of(&g, 2));
  guest_close(&g);
}

static void guest_sees_the_offset(void **state) {
  struct guest g;
  uint64_t offset = 1ull << 60;
  struct kvm_device_attr a = {.group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)&offset};
  guest_open(&g, 1, true);
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEVICE_ATTR, &a), 0);
  uint64_t before = __rdtsc() + offset, v = read_tsc(&g, 0);
  assert_true(v >= before && v <= __rdtsc() + offset);
  a.attr = 1;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEVICE_ATTR, &a), -ENXIO);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_HAS_DEVICE_ATTR, &a), -ENXIO);
  a.attr = KVM_VCPU_TSC_OFFSET;
  a.addr = 1;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_DEVICE_ATTR, &a), -EFAULT);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_DEVICE_ATTR, &a), -EFAULT);
  a.group = 1;
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_GET_DEVICE_ATTR, &a), -ENXIO);
  assert_int_equal(offset_of(&g, 0), offset);
  guest_close(&g);
}

static void frequency_scales(void **state) {
  struct guest g;
  guest_open(&g, 1, true);
  int khz = guest_ioctl(g.cpu[0], KVM_GET_TSC_KHZ, NULL);
  assert_true(khz > 100000);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_TSC_KHZ, (void *)(uintptr_t)(khz / 2)), 0);
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  uint64_t before0 = __rdtsc(), g0 = read_tsc(&g, 0), after0 = __rdtsc();
  usleep(20000);
  uint64_t before1 = __rdtsc(), g1 = read_tsc(&g, 0), after1 = __rdtsc();
  assert_in_range(g1 - g0, (before1 - after0) / 2 - 2, (after1 - before0) / 2 + 2);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_SET_TSC_KHZ, (void *)0x7fffffffull), -EINVAL);
  guest_close(&g);
}

static void adjust_follows_guest_writes(void **state) {
  struct guest g;
  guest_open(&g, 1, true);
  uint64_t offset = offset_of(&g, 0);
  assert_true(guest_set_msr(&g, 0, MSR_TSC_ADJUST, 5)); /* by user space: only the register */
  assert_int_equal(offset_of(&g, 0), offset);
  assert_int_equal(guest_get_msr(&g, 0, MSR_TSC_ADJUST), 5);
  guest_close(&g);
}

static void clock_pages_agree(void **state) {
  struct guest g;
  guest_open(&g, 2, true);
  for (unsigned k = 0; k < 2; k++) {
    uint32_t gpa = k ? PAGE + 4096 - 16 : PAGE; /* the second one in two pages */
    assert_true(guest_set_msr(&g, k, MSR_SYSTEM_TIME, gpa | 1));
    guest_code64(&g, k, rdtsc_hlt_begin, rdtsc_hlt_end);
    read_tsc(&g, k);
  }
  struct time_info a, b;
  memcpy(&a, g.memory + PAGE, sizeof(a));
  memcpy(&b, g.memory + PAGE + 4096 - 16, sizeof(b));
  assert_false(a.version & 1);
  assert_true(a.version);
  assert_int_equal(a.flags & TSC_STABLE, TSC_STABLE);
  assert_int_equal(a.tsc_timestamp, b.tsc_timestamp);
  assert_int_equal(a.system_time, b.system_time);
  assert_int_equal(a.mul, b.mul);
  uint64_t last = 0;
  for (int k = 0; k < 1000; k++) { /* one line of time for both */
    uint64_t t = pvclock(k & 1 ? &a : &b, read_tsc(&g, k & 1));
    assert_true(t >= last);
    last = t;
  }
  struct kvm_clock_data c;
  assert_int_equal(guest_ioctl(g.vm, KVM_GET_CLOCK, &c), 0);
  assert_int_equal(c.flags, KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC);
  assert_in_range(c.clock, last, pvclock(&a, read_tsc(&g, 0)));
  assert_int_equal(c.clock, pvclock(&a, c.host_tsc + offset_of(&g, 0)));
  guest_close(&g);
}

/* More vCPUs than fit a page of clock structures. */
static void many_vcpus(void **state) {
  struct guest g;
  struct time_info first, t;
  guest_open(&g, MAX_CPUS, true);
  for (unsigned k = 0; k < g.cpus; k++) assert_true(guest_set_msr(&g, k, MSR_SYSTEM_TIME, (PAGE + 64 * k) | 1));
  for (unsigned k = 0; k < g.cpus; k++) {
    guest_code64(&g, k, rdtsc_hlt_begin, rdtsc_hlt_end);
    read_tsc(&g, k);
    memcpy(&t, g.memory + PAGE + 64 * k, sizeof(t));
    if (!k) first = t;
    assert_int_equal(t.flags, TSC_STABLE);
    assert_memory_equal(&t.tsc_timestamp, &first.tsc_timestamp, sizeof(t) - offsetof(struct time_info, tsc_timestamp));
  }
  guest_close(&g);
}

static void clock_can_be_set(void **state) {
  struct guest g;
  struct kvm_clock_data c = {.clock = 77ull << 40};
  guest_open(&g, 1, true);
  assert_true(guest_set_msr(&g, 0, MSR_SYSTEM_TIME, PAGE | 1));
  uint64_t set = now_ns(CLOCK_MONOTONIC);
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_CLOCK, &c), 0);
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  uint64_t tsc = read_tsc(&g, 0);
  struct time_info *t = (struct time_info *)(g.memory + PAGE);
  assert_in_range(pvclock(t, tsc), 77ull << 40, (77ull << 40) + now_ns(CLOCK_MONOTONIC) - set + 10000000);
  c.flags = 1;
  assert_int_equal(guest_ioctl(g.vm, KVM_SET_CLOCK, &c), -EINVAL);
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_KVMCLOCK_CTRL, NULL), 0);
  read_tsc(&g, 0);
  assert_true(t->flags & GUEST_STOPPED);
  assert_true(guest_set_msr(&g, 0, MSR_SYSTEM_TIME, 0));
  assert_int_equal(guest_ioctl(g.cpu[0], KVM_KVMCLOCK_CTRL, NULL), -EINVAL);
  guest_close(&g);
}

static void unequal_counters_are_not_stable(void **state) {
  struct guest g;
  guest_open(&g, 2, true);
  assert_true(guest_set_msr(&g, 0, MSR_SYSTEM_TIME, PAGE | 1));
  assert_true(guest_set_msr(&g, 1, MSR_TSC, 1ull << 55));
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  read_tsc(&g, 0);
  assert_int_equal(((struct time_info *)(g.memory + PAGE))->flags & TSC_STABLE, 0);
  guest_close(&g);
}

/* A page outside memory: the register takes it, nothing is written. */
static void clock_page_may_be_nowhere(void **state) {
  struct guest g;
  guest_open(&g, 1, true);
  assert_true(guest_set_msr(&g, 0, MSR_SYSTEM_TIME, 0x7fff0000 | 1));
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  read_tsc(&g, 0);
  guest_close(&g);
}

static void wall_clock_says_when_the_clock_was_zero(void **state) {
  struct guest g;
  struct kvm_clock_data c;
  guest_open(&g, 1, true);
  assert_true(guest_set_msr(&g, 0, MSR_WALL_CLOCK, PAGE));
  uint32_t *w = (uint32_t *)(g.memory + PAGE);
  uint64_t before = now_ns(CLOCK_REALTIME);
  assert_int_equal(guest_ioctl(g.vm, KVM_GET_CLOCK, &c), 0);
  uint64_t after = now_ns(CLOCK_REALTIME);
  assert_in_range(w[1] * 1000000000ull + w[2], before - c.clock - 10000000, after - c.clock + 10000000);
  assert_int_equal(w[0] & 1, 0);
  guest_close(&g);
}

static void steal_time_page(void **state) {
  struct guest g;
  guest_open(&g, 1, true);
  assert_false(guest_set_msr(&g, 0, MSR_STEAL_TIME, PAGE | 3)); /* reserved bit */
  g.memory[PAGE + 16] = 1; /* "preempted", as a migrated guest's memory may have it */
  assert_true(guest_set_msr(&g, 0, MSR_STEAL_TIME, PAGE | 1));
  for (unsigned n = 0; n < 64; n++) assert_int_equal(g.memory[PAGE + n], n == 16); /* until the vCPU runs */
  guest_code64(&g, 0, rdtsc_hlt_begin, rdtsc_hlt_end);
  read_tsc(&g, 0);
  uint32_t version;
  memcpy(&version, g.memory + PAGE + 8, 4);
  assert_true(version && !(version & 1));
  assert_int_equal(g.memory[PAGE + 16], 0);
  guest_close(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(vcpus_share_a_counter),     cmocka_unit_test(guest_sees_the_offset),
      cmocka_unit_test(frequency_scales),          cmocka_unit_test(adjust_follows_guest_writes),
      cmocka_unit_test(clock_pages_agree),         cmocka_unit_test(many_vcpus),
      cmocka_unit_test(clock_can_be_set),          cmocka_unit_test(unequal_counters_are_not_stable),
      cmocka_unit_test(clock_page_may_be_nowhere), cmocka_unit_test(wall_clock_says_when_the_clock_was_zero),
      cmocka_unit_test(steal_time_page),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
