/* Steal time: how long the vCPU's thread waited for a processor, the preempted flag, and TLB flushes that others left for us
 * there. */
#include <asm/kvm_para.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include "base/fault.h"
#include "base/ownfd.h"
#include "base/rcu.h"
#include "core/memslot.h"
#include "x86/cpuid/cpuid.h"
#include "x86/mmu/access.h"
#include "x86/pv/pv.h"

#define STEAL_ENABLED  1ull
#define STEAL_RESERVED 0x3eull /* bits 5:1 (msr.rst, MSR_KVM_STEAL_TIME) */
#define STEAL_ADDRESS  (~0x3full)

/* ---- run delay of this thread ---- */

#define SCHEDSTAT "/proc/thread-self/schedstat"

static bool known;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void look(void) {
  known = !access(SCHEDSTAT, R_OK);
}

bool x86_pv_steal_known(void) {
  pthread_once(&once, look);
  return known;
}

static int open_schedstat(struct x86_pv *pv) {
  pthread_t self = pthread_self();
  if (pv->delay_fd >= 0 && pthread_equal(pv->delay_thread, self)) return pv->delay_fd;
  own_fd_close(pv->delay_fd);
  pv->delay_fd = own_fd(open(SCHEDSTAT, O_RDONLY | O_CLOEXEC));
  pv->delay_thread = self;
  pv->run_delay = ~0ull; /* another thread's figure does not go on from ours */
  return pv->delay_fd;
}

/* Second number of /proc/PID/task/TID/schedstat: nanoseconds runnable but not running. */
static bool read_run_delay(struct x86_pv *pv, u64 *ns) {
  char text[96];
  unsigned long long ran, waited;
  int fd = open_schedstat(pv);
  ssize_t n = fd < 0 ? -1 : pread(fd, text, sizeof(text) - 1, 0);
  if (n <= 0) return false;
  text[n] = 0;
  if (sscanf(text, "%llu %llu", &ran, &waited) != 2) return false;
  *ns = waited;
  return true;
}

/* ---- the guest's page ---- */

/* Host address of the steal-time structure (64 bytes, aligned: on one page); NULL where it is not writable memory.  In an RCU
 * section. */
static struct kvm_steal_time *map(struct x86_vcpu *c, const struct memslot **slot) {
  u64 gpa = c->pv->steal & STEAL_ADDRESS;
  *slot = memslot_find(vm_memslots(c->core.vm, 0), gpa >> PAGE_SHIFT);
  if (!*slot || ((*slot)->flags & KVM_MEM_READONLY)) return NULL;
  return (struct kvm_steal_time *)(uintptr_t)(memslot_hva(*slot, gpa >> PAGE_SHIFT) + (gpa & (PAGE_SIZE - 1)));
}

/* Runs fn on the structure.  False: there is none. */
static bool with_page(struct x86_vcpu *c, void (*fn)(struct x86_vcpu *c, struct kvm_steal_time *st)) {
  const struct memslot *slot;
  struct fault_guard guard;
  bool done = false;
  rcu_read_lock();
  struct kvm_steal_time *st = map(c, &slot);
  if (st && !fault_try(&guard)) {
    fn(c, st);
    fault_end(&guard);
    mark_page_dirty(&c->core, slot, (c->pv->steal & STEAL_ADDRESS) >> PAGE_SHIFT);
    done = true;
  }
  rcu_read_unlock();
  return done;
}

GUEST_ACCESS static void account(struct x86_vcpu *c, struct kvm_steal_time *st) {
  u64 now;
  if (!read_run_delay(c->pv, &now)) return;
  u64 waited = c->pv->run_delay == ~0ull ? 0 : now - c->pv->run_delay;
  c->pv->run_delay = now;
  u32 version = (READ_ONCE(st->version) | 1) == READ_ONCE(st->version) ? st->version + 2 : st->version + 1;
  __atomic_store_n(&st->version, version, __ATOMIC_RELEASE);
  __atomic_store_n(&st->steal, st->steal + waited, __ATOMIC_RELEASE); /* after the odd version */
  __atomic_store_n(&st->version, version + 1, __ATOMIC_RELEASE);
}

void x86_pv_steal_tick(struct x86_vcpu *c) {
  struct x86_pv *pv = c->pv;
  if (!(pv->steal & STEAL_ENABLED)) return;
  u64 now = x86_host_tsc();
  if (now < pv->steal_next) return;
  pv->steal_next = now + x86_host_tsc_khz();
  with_page(c, account);
}

/* A client that restores the MSR finds its guest's memory untouched until the vCPU runs; a preempted flag that came along in memory
 * is cleared then. */
bool x86_pv_steal_write(struct x86_vcpu *c, u64 value, bool host) {
  if ((value & STEAL_RESERVED) || !x86_pv_steal_known()) return false;
  c->pv->steal = value;
  c->pv->steal_next = 0;
  c->pv->preempted = value & STEAL_ENABLED;
  if (!host) x86_pv_steal_tick(c);
  return true;
}

/* ---- leaving and entering ---- */

GUEST_ACCESS static void set_preempted(struct x86_vcpu *c, struct kvm_steal_time *st) {
  __atomic_store_n(&st->preempted, KVM_VCPU_PREEMPTED, __ATOMIC_SEQ_CST);
  c->pv->preempted = true;
}

/* Others who see the flag leave their TLB flush there instead of sending an interrupt (KVM_FEATURE_PV_TLB_FLUSH). */
GUEST_ACCESS static void clear_preempted(struct x86_vcpu *c, struct kvm_steal_time *st) {
  u8 was = __atomic_exchange_n(&st->preempted, 0, __ATOMIC_SEQ_CST);
  c->pv->preempted = false;
  if ((was & KVM_VCPU_FLUSH_TLB) && x86_pv_has(c, X86_FEATURE_KVM_PV_TLB_FLUSH)) x86_mmu_flush_all(c, true);
}

/* A kick that comes before the vCPU sleeps must not be lost: whoever sees it ends the halt. */
static void take_kick(struct x86_vcpu *c) {
  if (c->mp_state != KVM_MP_STATE_HALTED || !atomic_load_explicit(&c->pv->kicked, memory_order_acquire)) return;
  atomic_store_explicit(&c->pv->kicked, false, memory_order_relaxed);
  c->mp_state = KVM_MP_STATE_RUNNABLE;
  vcpu_request(&c->core, REQ_UNHALT); /* vcpu_halt() returns at once */
}

bool x86_pv_may_halt(struct x86_vcpu *c) {
  return !atomic_exchange_explicit(&c->pv->kicked, false, memory_order_acq_rel);
}

/* Reading the run delay is a system call: after an exit it is made at once only if the vCPU was away for longer than that costs. */
#define LONG_ABSENCE_KHZ 20u /* 1 / 50 us */

void x86_pv_enter(struct x86_vcpu *c) {
  struct x86_pv *pv = c->pv;
  c->cpuid->ran = true;
  take_kick(c);
  if (pv->preempted) with_page(c, clear_preempted);
  if (!(pv->steal & STEAL_ENABLED)) return;
  if (x86_host_tsc() - pv->left > x86_host_tsc_khz() / LONG_ABSENCE_KHZ) pv->steal_next = 0;
  x86_pv_steal_tick(c);
}

/* Only a halt is a preemption worth telling: an exit to the client is short, and costs no more than it must. */
void x86_pv_leave(struct x86_vcpu *c) {
  if (c->mp_state == KVM_MP_STATE_HALTED) take_kick(c);
  if (!(c->pv->steal & STEAL_ENABLED)) return;
  c->pv->left = x86_host_tsc();
  if (c->mp_state == KVM_MP_STATE_HALTED && !c->core.vm->halt_in_guest) with_page(c, set_preempted);
}

/* ---- life ---- */

int x86_pv_create(struct x86_vcpu *c) {
  u32 ids = x86_vm_of(c)->clock->max_vcpu_ids;
  if (ids && c->core.id >= ids) return -EINVAL; /* api.rst 7.29, KVM_CAP_MAX_VCPU_ID */
  c->pv = calloc(1, sizeof(*c->pv));
  if (!c->pv) return -ENOMEM;
  c->pv->delay_fd = -1;
  c->pv->poll_control = 1;
  x86_tsc_create(c);
  if (!atomic_load(&c->core.vm->n_vcpus)) x86_vm_clock_begin(x86_vm_of(c));
  return 0;
}

void x86_pv_destroy(struct x86_vcpu *c) {
  if (!c->pv) return;
  own_fd_close(c->pv->delay_fd);
  free(c->pv);
  c->pv = NULL;
}

/* Power-on reset of the vCPU: the pages of the last guest are nobody's any more. */
void x86_pv_reset(struct x86_vcpu *c) {
  c->pv->system_time = 0;
  c->pv->steal = 0;
  c->pv->preempted = false;
  c->pv->poll_control = 1;
  atomic_store(&c->pv->kicked, false);
}
