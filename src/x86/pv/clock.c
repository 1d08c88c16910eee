/* kvmclock: system time and wall clock pages, and the VM's clock as user space sees it.
 *
 * The clock is a straight line over the host's TSC.  Each vCPU's page holds the same point of that line, expressed in the guest's
 * TSC; so readings are monotonic between vCPUs whenever their TSCs are equal, and the page says so by PVCLOCK_TSC_STABLE. */
#include <asm/kvm_para.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/memslot.h"
#include "x86/cpuid/cpuid.h"
#include "x86/pv/pv.h"

#define NS_PER_SEC          1000000000ull
#define SYSTEM_TIME_ENABLED 1ull
#define TIME_TSC_STABLE     1u
#define TIME_GUEST_STOPPED  2u

/* Documentation/virt/kvm/x86/msr.rst, MSR_KVM_SYSTEM_TIME_NEW and MSR_KVM_WALL_CLOCK_NEW */
struct time_info {
  u32 version, pad0;
  u64 tsc_timestamp, system_time;
  u32 tsc_to_system_mul;
  s8 tsc_shift;
  u8 flags, pad[2];
} __attribute__((packed));

struct wall_clock {
  u32 version, sec, nsec;
};

/* ---- the line ---- */

/* Factors from cycles of a counter of `khz` to nanoseconds: shift, then multiply by mul / 2^32, with mul as large as fits. */
static u32 time_scale(u64 khz, s8 *shift) {
  u64 num = NS_PER_SEC, den = khz * 1000;
  *shift = 0;
  while (num >= den) den <<= 1, ++*shift;
  while (num * 2 < den) num <<= 1, --*shift;
  return (u32)(((unsigned __int128)num << 32) / den);
}

static u64 scale_delta(u64 delta, u32 mul, s8 shift) {
  delta = shift < 0 ? delta >> -shift : delta << shift;
  return (u64)((unsigned __int128)delta * mul >> 32);
}

/* The clock at a host TSC, by the formula and the factors that guests use at the host's frequency. */
static u64 clock_at(const struct x86_vm_clock *k, u64 host_tsc) {
  s8 shift;
  u32 mul = time_scale(x86_host_tsc_khz(), &shift);
  return k->base_ns + scale_delta(host_tsc - k->base_tsc, mul, shift);
}

static u64 realtime_ns(void) {
  struct timespec ts;
  clock_gettime(CLOCK_REALTIME, &ts);
  return (u64)ts.tv_sec * NS_PER_SEC + (u64)ts.tv_nsec;
}

int x86_vm_clock_create(struct x86_vm *vm) {
  vm->clock = calloc(1, sizeof(*vm->clock));
  if (!vm->clock) return -ENOMEM;
  vm->tsc_khz = x86_host_tsc_khz();
  vm->clock->base_tsc = x86_host_tsc();
  pthread_mutex_init(&vm->clock->lock, NULL);
  pthread_mutex_init(&vm->clock->tsc.lock, NULL);
  return 0;
}

void x86_vm_clock_destroy(struct x86_vm *vm) {
  if (!vm->clock) return;
  pthread_mutex_destroy(&vm->clock->lock);
  pthread_mutex_destroy(&vm->clock->tsc.lock);
  free(vm->clock);
  vm->clock = NULL;
}

/* The line's fixed point moves to where the first vCPU's TSC began, so that no page holds a time stamp from before that. */
void x86_vm_clock_begin(struct x86_vm *vm) {
  struct x86_vm_clock *k = vm->clock;
  pthread_mutex_lock(&k->lock);
  u64 now = x86_host_tsc();
  k->base_ns = clock_at(k, now);
  k->base_tsc = now;
  pthread_mutex_unlock(&k->lock);
}

void x86_vm_clock_get(struct x86_vm *vm, struct kvm_clock_data *data) {
  struct x86_vm_clock *k = vm->clock;
  bool stable = x86_tsc_all_matched(vm);
  memset(data, 0, sizeof(*data));
  pthread_mutex_lock(&k->lock);
  data->host_tsc = x86_host_tsc();
  data->realtime = realtime_ns();
  data->clock = clock_at(k, data->host_tsc);
  pthread_mutex_unlock(&k->lock);
  data->flags = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC | (stable ? KVM_CLOCK_TSC_STABLE : 0);
}

/* Linux reads vCPU 0's page on every vCPU (its vDSO): the one that enters first must not find the old line there, which would be time that goes back later.  So
 * the pages of vCPUs that are not in an ioctl are written now; those that are write theirs themselves. */
static void clock_was_set(struct vcpu *v) {
  vcpu_request(v, REQ_CLOCK);
  if (pthread_mutex_trylock(&v->mutex)) return;
  x86_pv_clock_update(x86_vcpu(v));
  pthread_mutex_unlock(&v->mutex);
}

int x86_vm_clock_set(struct x86_vm *vm, const struct kvm_clock_data *data) {
  struct x86_vm_clock *k = vm->clock;
  u64 clock = data->clock, now = realtime_ns();
  /* Only KVM_CLOCK_REALTIME means something here (api.rst 4.30). */
  if (data->flags & ~(u32)(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC)) return -EINVAL;
  if ((data->flags & KVM_CLOCK_REALTIME) && now > data->realtime) clock += now - data->realtime;
  pthread_mutex_lock(&k->lock);
  k->base_tsc = x86_host_tsc();
  k->base_ns = clock;
  pthread_mutex_unlock(&k->lock);
  unsigned n = atomic_load_explicit(&vm->core.n_vcpus, memory_order_acquire);
  for (unsigned i = 0; i < n; i++) clock_was_set(vm->core.vcpus[i]);
  return 0;
}

/* ---- system time page ---- */

static bool write_part(struct x86_vcpu *c, u64 gpa, const void *part, size_t len) {
  return !vcpu_write_gpa(&c->core, gpa, part, len);
}

/* Odd version, contents, even version: three writes in this order (x86 keeps stores in order; the compiler must, too). */
static void publish(struct x86_vcpu *c, u64 gpa, struct time_info *t) {
  struct time_info old;
  if (vm_read_gpa(c->core.vm, gpa, &old, sizeof(old))) return;
  u32 version = (old.version | 1) + 2;
  if (!(old.version & 1)) version = old.version + 1;
  if (!write_part(c, gpa, &version, sizeof(version))) return;
  atomic_signal_fence(memory_order_seq_cst);
  t->flags |= old.flags & TIME_GUEST_STOPPED; /* until the guest clears it */
  write_part(c, gpa + sizeof(version), (u8 *)t + sizeof(version), sizeof(*t) - sizeof(version));
  atomic_signal_fence(memory_order_seq_cst);
  version++;
  write_part(c, gpa, &version, sizeof(version));
}

void x86_pv_clock_update(struct x86_vcpu *c) {
  struct x86_vm_clock *k = x86_vm_of(c)->clock;
  if (!(c->pv->system_time & SYSTEM_TIME_ENABLED)) return;
  struct time_info t = {0};
  bool stable = !c->pv->clock_old && x86_tsc_all_matched(x86_vm_of(c));
  u64 host_tsc;
  pthread_mutex_lock(&k->lock);
  host_tsc = stable ? k->base_tsc : x86_host_tsc();
  t.system_time = clock_at(k, host_tsc);
  pthread_mutex_unlock(&k->lock);
  t.tsc_timestamp = x86_host_to_guest_tsc(c, host_tsc);
  t.tsc_to_system_mul = time_scale(c->tsc_khz, &t.tsc_shift);
  if (stable) t.flags |= TIME_TSC_STABLE;
  if (c->pv->guest_stopped) t.flags |= TIME_GUEST_STOPPED;
  c->pv->guest_stopped = false;
  publish(c, c->pv->system_time & ~SYSTEM_TIME_ENABLED, &t);
}

void x86_pv_system_time_write(struct x86_vcpu *c, u64 value, bool old) {
  c->pv->system_time = value;
  c->pv->clock_old = old;
  vcpu_request(&c->core, REQ_CLOCK);
}

int x86_pv_clock_stopped(struct x86_vcpu *c) {
  if (!(c->pv->system_time & SYSTEM_TIME_ENABLED)) return -EINVAL;
  c->pv->guest_stopped = true;
  vcpu_request(&c->core, REQ_CLOCK);
  return 0;
}

/* ---- wall clock page ---- */

/* The time of day at which the VM's clock read 0. */
void x86_pv_wall_clock_write(struct x86_vcpu *c, u64 value) {
  struct x86_vm_clock *k = x86_vm_of(c)->clock;
  struct wall_clock w;
  atomic_store(&k->wall_clock, value);
  if (!value || vm_read_gpa(c->core.vm, value, &w.version, sizeof(w.version))) return;
  if (w.version & 1) w.version++; /* as after a crash of the writer */
  w.version++;
  write_part(c, value, &w.version, sizeof(w.version));
  pthread_mutex_lock(&k->lock);
  u64 boot = realtime_ns() - clock_at(k, x86_host_tsc());
  pthread_mutex_unlock(&k->lock);
  w.sec = (u32)(boot / NS_PER_SEC);
  w.nsec = (u32)(boot % NS_PER_SEC);
  write_part(c, value + sizeof(w.version), &w.sec, sizeof(w) - sizeof(w.version));
  w.version++;
  write_part(c, value, &w.version, sizeof(w.version));
}
