/* A guest's whole state, by the ioctls alone, from one VM into another: what a snapshot or a migration does. */
#ifndef TESTS_GUEST_COPY_H
#define TESTS_GUEST_COPY_H

#include "harness.h"

/* In which order a client puts state back. */
enum copy_order {
  COPY_AS_QEMU,        /* chips first, then registers, XSAVE, MSRs, events, run state, deadline */
  COPY_AS_FIRECRACKER, /* run state first, then registers, chips, MSRs, events */
  COPY_ORDERS
};

/* Replaces the guest's VM by a new one with the same memory and state; cpus[0] is the guest, the others were made by
 * guest_add_cpu.  The pointers stay.  Checks that the new VM reads back what was put into it. */
void copy_guest(struct guest *const *cpus, unsigned n, enum copy_order order);
/* What every copy does to a new VM before its vCPUs are made: capabilities. */
extern void (*copy_prepare)(struct guest *g);
/* Time between the state of the VM and that of its vCPUs: what the chips do meanwhile must not last. */
extern unsigned copy_pause_ms;

#endif
