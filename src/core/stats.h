/* Statistics of a VM and of a vCPU: plain 64-bit values, shown to the client through a read-only descriptor.
 *
 * A block's memory is laid out as the descriptor shows it (header, id, descriptions, values), and once a client asked for the
 * descriptor it is the file itself: reading takes no lock and stops nobody.
 */
#ifndef CORE_STATS_H
#define CORE_STATS_H

#include "core/vm.h"

struct vm_stats {
#define STAT_VM(name, values) u64 name[values];
#define STAT_VCPU(name, values)
#define STAT(owner, name, kind, values) STAT_##owner(name, values)
#include "core/stats.def"
#undef STAT_VM
#undef STAT_VCPU
};

struct vcpu_stats {
#define STAT_VM(name, values)
#define STAT_VCPU(name, values) u64 name[values];
#include "core/stats.def"
#undef STAT
#undef STAT_VM
#undef STAT_VCPU
};

#define vcpu_stat_inc(vcpu, field)    ((vcpu)->stats->field[0]++)
#define vcpu_stat_add(vcpu, field, n) ((vcpu)->stats->field[0] += (n))
/* An exit by its reason: also counted in `exits`. */
#define vcpu_stat_exit(vcpu, field) (vcpu_stat_inc(vcpu, field), vcpu_stat_inc(vcpu, exits))
#define vcpu_stat_set(vcpu, field, v) ((vcpu)->stats->field[0] = (v))
/* Any thread. */
#define vm_stat_inc(vm, field)    __atomic_fetch_add(&(vm)->stats->field[0], 1, __ATOMIC_RELAXED)
#define vm_stat_add(vm, field, n) __atomic_fetch_add(&(vm)->stats->field[0], (n), __ATOMIC_RELAXED)

/* Counts `value` in a HIST_NS field: bucket 0 holds 0, bucket n holds [2^(n-1), 2^n), the last is open. */
static inline void stat_hist_add(u64 *hist, unsigned buckets, u64 value) {
  unsigned n = value ? 64u - (unsigned)__builtin_clzll(value) : 0;
  hist[MIN(n, buckets - 1)]++;
}
#define vcpu_stat_hist(vcpu, field, value) stat_hist_add((vcpu)->stats->field, ARRAY_SIZE((vcpu)->stats->field), (value))

/* 0 or -ENOMEM. */
int vm_stats_create(struct vm *vm);
int vcpu_stats_create(struct vcpu *vcpu);
void vm_stats_destroy(struct vm *vm);
void vcpu_stats_destroy(struct vcpu *vcpu);

/* KVM_GET_STATS_FD: a new read-only descriptor with a file position of its own, or -errno.  The vCPU's is taken with vcpu->mutex
 * held. */
int vm_stats_fd(struct vm *vm);
int vcpu_stats_fd(struct vcpu *vcpu);

#endif
