/* A machine for the interrupt controllers alone: time, buses, routing, guest memory and requests without threads. */
#ifndef TESTS_IRQCHIP_FAKE_H
#define TESTS_IRQCHIP_FAKE_H

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <cmocka.h>
#include "x86/irqchip/lapic.h"

#define FAKE_VCPUS 8

struct fake {
  struct x86_vm vm;
  struct x86_vcpu *vcpu[FAKE_VCPUS];
  unsigned n;
  u64 now; /* CLOCK_MONOTONIC; the guest's TSC runs at 2 GHz */
  u64 mcg_cap;
  bool x2apic, deadline, amd;
  u8 memory[4096]; /* guest-physical 0 */
  unsigned acks[3][24];
  unsigned arms; /* calls of evtimer_arm() */
};
extern struct fake fake;

/* A fresh VM with n vCPUs, ids 0..n-1 (first_id + k), in xAPIC mode.  kind: 'k' all chips, 's' split, 'n' none. */
void fake_start(char kind, unsigned n, u32 first_id);
void fake_stop(void);
/* Lets time pass; timers fire in order. */
void fake_sleep(u64 ns);
/* Takes vCPU k's REQ_EVENT. */
bool fake_event(unsigned k);
void fake_out(u16 port, u8 v);
u8 fake_in(u16 port);
void fake_mmio_write(u64 addr, u32 v);
u32 fake_mmio_read(u64 addr);
/* The APIC page of vCPU k, by register number. */
u32 apic_read(unsigned k, unsigned reg);
void apic_write(unsigned k, unsigned reg, u32 v);
/* Software enable, all vectors allowed. */
void apic_enable(unsigned k);
void apic_x2(unsigned k);
/* The GSI's line. */
int fake_line(u32 gsi, int level);
void fake_route_msi(u32 gsi, u64 address, u32 data);

#endif
