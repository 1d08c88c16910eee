/* Paravirtual interfaces of KVM (Documentation/virt/kvm/x86/msr.rst, hypercalls.rst): clock, steal time, kicks. */
#ifndef X86_PV_PV_H
#define X86_PV_PV_H

#include "x86/cpu/tsc.h"
#include "x86/x86.h"

/* The clock of a VM.  Its base changes only when user space sets the clock, so all vCPUs always read one line of time. */
struct x86_vm_clock {
  struct x86_tsc_vm tsc;
  pthread_mutex_t lock;   /* the two below; inside tsc.lock never */
  u64 base_tsc;           /* host TSC ... */
  u64 base_ns;            /* ... at which the clock read this */
  _Atomic u64 wall_clock; /* MSR_KVM_WALL_CLOCK */
  /* VM-wide settings without another home; written under vm->lock */
  bool hide_platform_info; /* KVM_CAP_MSR_PLATFORM_INFO switched off: the guest may not read MSR_PLATFORM_INFO */
  u32 max_vcpu_ids;        /* KVM_CAP_MAX_VCPU_ID: ids must be below; 0 not set */
  u64 mmu_pages;           /* KVM_SET_NR_MMU_PAGES: remembered; there are no shadow pages to limit */
};

struct x86_pv {
  struct x86_tsc_vcpu tsc;
  u64 system_time;        /* MSR_KVM_SYSTEM_TIME */
  bool clock_old;         /* ... written through the old number */
  bool guest_stopped;     /* KVM_KVMCLOCK_CTRL: tell the guest at the next update */
  u64 steal;              /* MSR_KVM_STEAL_TIME */
  u64 steal_next;         /* host TSC before which run delay is not read again */
  u64 left;               /* host TSC when the vCPU last stopped running guest code */
  u64 run_delay;          /* of the thread when it was last read */
  int delay_fd;           /* its /proc/thread-self/schedstat, or -1 */
  pthread_t delay_thread; /* whose */
  bool preempted;         /* the flag is, or may be, set in guest memory */
  u64 poll_control, eoi;  /* MSR_KVM_POLL_CONTROL, MSR_KVM_PV_EOI_EN */
  _Atomic bool kicked;    /* KVM_HC_KICK_CPU: the next or current halt ends */
};

int x86_vm_clock_create(struct x86_vm *vm);
void x86_vm_clock_destroy(struct x86_vm *vm);
void x86_vm_clock_begin(struct x86_vm *vm); /* the first vCPU has its TSC */

/* MSRs.  False: bad value (#GP). */
void x86_pv_system_time_write(struct x86_vcpu *c, u64 value, bool old);
void x86_pv_wall_clock_write(struct x86_vcpu *c, u64 value);
bool x86_pv_steal_write(struct x86_vcpu *c, u64 value, bool host);
/* Whether the host tells run delays (/proc/thread-self/schedstat): without them there is no steal time. */
bool x86_pv_steal_known(void);
/* Accounts run delay, at most once per millisecond; cheap to call often. */
void x86_pv_steal_tick(struct x86_vcpu *c);

/* KVM_GET_CLOCK, KVM_SET_CLOCK, KVM_KVMCLOCK_CTRL. */
void x86_vm_clock_get(struct x86_vm *vm, struct kvm_clock_data *data);
int x86_vm_clock_set(struct x86_vm *vm, const struct kvm_clock_data *data);
int x86_pv_clock_stopped(struct x86_vcpu *c);

/* HLT is about to sleep: false when a kick came first. */
bool x86_pv_may_halt(struct x86_vcpu *c);

#endif
