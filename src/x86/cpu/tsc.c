/* Time-stamp counters: the host's frequency, a guest's offset and scale, and keeping the vCPUs of a VM in step. */
#include <errno.h>
#include <time.h>
#include <x86intrin.h>
#include "base/evloop.h"
#include "x86/cpu/tsc.h"
#include "x86/pv/pv.h"

#define MUL_SHIFT      48
#define TOLERANCE_PPM  250
#define MAX_KHZ        0x7fffffffull
#define CALIBRATION_NS 20000000
#define NS_PER_SEC     1000000000ull

typedef unsigned __int128 u128;

u64 x86_host_tsc(void) {
  return __rdtsc();
}

/* ---- the host's frequency ---- */

struct reading {
  u64 tsc, ns;
};

/* The closest pair of several: a reading that was interrupted shows as a wide bracket. */
static struct reading read_pair(void) {
  struct reading best = {0, 0};
  u64 width = ~0ull;
  for (int k = 0; k < 16; k++) {
    struct timespec ts;
    u64 before = __rdtsc();
    clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
    u64 after = __rdtsc();
    if (after - before >= width) continue;
    width = after - before;
    best = (struct reading){.tsc = before + width / 2, .ns = (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec};
  }
  return best;
}

static u64 host_khz;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void measure(void) {
  struct timespec wait = {.tv_nsec = CALIBRATION_NS};
  struct reading a = read_pair();
  nanosleep(&wait, NULL);
  struct reading b = read_pair();
  host_khz = (u64)((u128)(b.tsc - a.tsc) * 1000000 / (b.ns - a.ns));
  if (!host_khz) host_khz = 1;
}

u64 x86_host_tsc_khz(void) {
  pthread_once(&once, measure);
  return host_khz;
}

/* ---- reading ---- */

static u64 scale(const struct x86_vcpu *c, u64 host_tsc) {
  return likely(!c->tsc_scaled) ? host_tsc : (u64)((u128)host_tsc * c->tsc_mul >> MUL_SHIFT);
}

u64 x86_host_to_guest_tsc(struct x86_vcpu *c, u64 host_tsc) {
  return scale(c, host_tsc) + c->tsc_offset;
}

u64 x86_guest_tsc(struct x86_vcpu *c) {
  return x86_host_to_guest_tsc(c, __rdtsc());
}

u64 x86_tsc_deadline_to_ns(struct x86_vcpu *c, u64 tsc) {
  u64 now = x86_guest_tsc(c);
  if (tsc <= now) return 0;
  u128 ns = (u128)(tsc - now) * 1000000 / (c->tsc_khz ? c->tsc_khz : 1);
  u64 start = clock_now_ns();
  return ns > (u128)(~0ull - start) ? ~0ull : start + (u64)ns;
}

/* ---- writing ---- */

static void offset_changed(struct x86_vcpu *c, u64 offset) {
  if (offset == c->tsc_offset) return;
  c->tsc_offset = offset;
  if (c->lapic) x86_lapic_tsc_changed(c);
  vcpu_request(&c->core, REQ_CLOCK);
}

/* lock held. */
static void write_offset(struct x86_vcpu *c, struct x86_tsc_vm *t, u64 offset, u64 tsc, u64 ns, bool matched) {
  t->last_ns = ns;
  t->last_write = tsc;
  t->last_khz = c->tsc_khz;
  t->last_offset = offset;
  offset_changed(c, offset);
  if (!matched) {
    t->generation++;
    t->offset = offset;
    t->matched = 0;
  } else if (c->pv->tsc.generation != t->generation) {
    t->matched++;
  }
  c->pv->tsc.generation = t->generation;
}

/* Whether every vCPU reads the same counter may have changed: their clock pages say so. */
static void tell_clocks(struct x86_vm *vm) {
  unsigned n = atomic_load_explicit(&vm->core.n_vcpus, memory_order_acquire);
  for (unsigned k = 0; k < n; k++) vcpu_request(vm->core.vcpus[k], REQ_CLOCK);
}

bool x86_tsc_all_matched(struct x86_vm *vm) {
  struct x86_tsc_vm *t = &vm->clock->tsc;
  pthread_mutex_lock(&t->lock);
  bool all = t->matched + 1 >= atomic_load_explicit(&vm->core.n_vcpus, memory_order_acquire);
  pthread_mutex_unlock(&t->lock);
  return all;
}

/* A value within a second of what the last written vCPU reads by now is an attempt to make them equal.  The first value that a client
 * writes is meant as it is (as in Linux since 6.7): what was counted since the VM was made is nobody's, and a guest that was moved must
 * not see its counter go back. */
static bool synchronizing(const struct x86_vcpu *c, const struct x86_tsc_vm *t, u64 tsc, u64 ns) {
  u64 hz = c->tsc_khz * 1000;
  if (!tsc) return true;
  if (!t->written) return false;
  u64 expected = t->last_write + (u64)((u128)(ns - t->last_ns) * c->tsc_khz / 1000000);
  return tsc < expected + hz && tsc + hz > expected;
}

static u64 raw_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
  return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

void x86_tsc_write_host(struct x86_vcpu *c, u64 tsc) {
  struct x86_tsc_vm *t = &x86_vm_of(c)->clock->tsc;
  pthread_mutex_lock(&t->lock);
  u64 ns = raw_ns(), offset = tsc - scale(c, __rdtsc());
  bool matched = synchronizing(c, t, tsc, ns) && c->tsc_khz == t->last_khz;
  write_offset(c, t, matched ? t->offset : offset, tsc, ns, matched);
  t->written = t->written || tsc;
  pthread_mutex_unlock(&t->lock);
  tell_clocks(x86_vm_of(c));
}

void x86_tsc_set_offset(struct x86_vcpu *c, u64 offset) {
  struct x86_tsc_vm *t = &x86_vm_of(c)->clock->tsc;
  pthread_mutex_lock(&t->lock);
  bool matched = t->last_khz == c->tsc_khz && t->last_offset == offset;
  write_offset(c, t, offset, scale(c, __rdtsc()) + offset, raw_ns(), matched);
  t->written = true;
  pthread_mutex_unlock(&t->lock);
  tell_clocks(x86_vm_of(c));
}

void x86_tsc_write_guest(struct x86_vcpu *c, u64 tsc) {
  u64 by = tsc - scale(c, __rdtsc()) - c->tsc_offset;
  offset_changed(c, c->tsc_offset + by);
  c->tsc_adjust += by;
}

void x86_tsc_adjust_write_guest(struct x86_vcpu *c, u64 adjust) {
  offset_changed(c, c->tsc_offset + (adjust - c->tsc_adjust));
  c->tsc_adjust = adjust;
}

/* ---- frequency ---- */

static bool close_to_host(u64 khz) {
  u64 host = x86_host_tsc_khz(), slack = host * TOLERANCE_PPM / 1000000;
  return khz >= host - slack && khz <= host + slack;
}

int x86_tsc_set_khz(struct x86_vcpu *c, u64 khz) {
  u64 host = x86_host_tsc_khz();
  if (khz >= MAX_KHZ) return -EINVAL;
  if (!khz) khz = host;
  c->tsc_khz = khz;
  c->tsc_scaled = !close_to_host(khz);
  c->tsc_mul = c->tsc_scaled ? (u64)(((u128)khz << MUL_SHIFT) / host) : 1ull << MUL_SHIFT;
  if (c->lapic) x86_lapic_tsc_changed(c);
  vcpu_request(&c->core, REQ_CLOCK);
  return 0;
}

void x86_tsc_create(struct x86_vcpu *c) {
  x86_tsc_set_khz(c, x86_vm_of(c)->tsc_khz);
  x86_tsc_write_host(c, 0);
}
