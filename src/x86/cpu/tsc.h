/* Time-stamp counters: frequency, offset and the agreement between a VM's vCPUs. */
#ifndef X86_CPU_TSC_H
#define X86_CPU_TSC_H

#include <pthread.h>
#include "x86/x86.h"

/* What the vCPUs of a VM agreed on.  All under `lock`. */
struct x86_tsc_vm {
  pthread_mutex_t lock;
  u64 last_ns, last_write, last_khz, last_offset; /* of the most recent write by user space */
  u64 generation, offset;                         /* vCPUs of one generation have one offset */
  unsigned matched;                               /* vCPUs of the generation besides the first */
  bool written;                                   /* user space has set a counter */
};

struct x86_tsc_vcpu {
  u64 generation;
};

u64 x86_host_tsc(void);
u64 x86_host_tsc_khz(void);
/* Sets the vCPU's frequency to its VM's and its counter to 0, in step with the vCPUs before it. */
void x86_tsc_create(struct x86_vcpu *c);
/* KVM_SET_TSC_KHZ of a vCPU: 0 or -EINVAL. */
int x86_tsc_set_khz(struct x86_vcpu *c, u64 khz);
/* A write by user space (KVM_SET_MSRS): a value close to what the other vCPUs read, or 0, means the same as theirs. */
void x86_tsc_write_host(struct x86_vcpu *c, u64 tsc);
/* WRMSR by the guest: moves IA32_TSC_ADJUST too (SDM Vol. 3B 18.17.3). */
void x86_tsc_write_guest(struct x86_vcpu *c, u64 tsc);
void x86_tsc_adjust_write_guest(struct x86_vcpu *c, u64 adjust);
/* KVM_VCPU_TSC_OFFSET. */
void x86_tsc_set_offset(struct x86_vcpu *c, u64 offset);
/* All vCPUs read one counter: the flag PVCLOCK_TSC_STABLE_BIT may be shown. */
bool x86_tsc_all_matched(struct x86_vm *vm);

#endif
