/* Saving and restoring a guest with the KVM ABI. */
#include "copy.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_MSRS     256
#define XSAVE_WORDS  2048
#define MSR_TSC      0x10
#define MSR_DEADLINE 0x6e0
#define MSR_APERF    0xe8
#define MSR_WALL     0x4b564d00

struct msrs {
  struct kvm_msrs head;
  struct kvm_msr_entry entries[MAX_MSRS];
};

struct vcpu_state {
  struct kvm_mp_state mp;
  struct kvm_vcpu_events events;
  struct kvm_regs regs;
  struct kvm_sregs2 sregs;
  struct kvm_xcrs xcrs;
  struct kvm_debugregs debug;
  struct kvm_lapic_state lapic;
  struct msrs msrs;
  long tsc_khz;
  u64 deadline;
  u32 xsave[XSAVE_WORDS];
  struct {
    struct kvm_cpuid2 head;
    struct kvm_cpuid_entry2 entries[256];
  } cpuid;
};

struct vm_state {
  struct kvm_irqchip chip[3];
  struct kvm_pit_state2 pit;
  struct kvm_clock_data clock;
};

void (*copy_prepare)(struct guest *g);
unsigned copy_pause_ms;

#define DO(fd, request, arg) CHECK_EQ(guest_ioctl(fd, request, arg), 0)

/* ---- MSRs ---- */

static void msr_list(struct guest *g, struct msrs *m) {
  struct {
    u32 n, index[MAX_MSRS];
  } list = {.n = MAX_MSRS};
  DO(g->sys, KVM_GET_MSR_INDEX_LIST, &list);
  m->head.nmsrs = 0;
  for (u32 k = 0; k < list.n; k++) {
    struct msrs one = {.head.nmsrs = 1, .entries[0].index = list.index[k]};
    if (list.index[k] == MSR_DEADLINE || guest_ioctl(g->vcpu, KVM_GET_MSRS, &one) != 1) continue;
    m->entries[m->head.nmsrs++].index = list.index[k];
  }
}

static void get_msrs(struct guest *g, struct msrs *m) {
  msr_list(g, m);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_MSRS, m), m->head.nmsrs);
}

static void set_deadline(struct guest *g, u64 deadline) {
  struct msrs one = {.head.nmsrs = 1, .entries[0] = {.index = MSR_DEADLINE, .data = deadline}};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &one), 1);
}

static u64 get_deadline(struct guest *g) {
  struct msrs one = {.head.nmsrs = 1, .entries[0].index = MSR_DEADLINE};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_GET_MSRS, &one), 1);
  return one.entries[0].data;
}

/* ---- saving ---- */

static void save_cpu(struct guest *g, struct vcpu_state *s) {
  DO(g->vcpu, KVM_GET_MP_STATE, &s->mp); /* first: it may change the rest */
  s->cpuid.head.nent = 256;
  DO(g->vcpu, KVM_GET_CPUID2, &s->cpuid);
  s->tsc_khz = guest_ioctl(g->vcpu, KVM_GET_TSC_KHZ, NULL);
  DO(g->vcpu, KVM_GET_VCPU_EVENTS, &s->events);
  DO(g->vcpu, KVM_GET_REGS, &s->regs);
  DO(g->vcpu, KVM_GET_SREGS2, &s->sregs);
  DO(g->vcpu, KVM_GET_XSAVE2, s->xsave);
  DO(g->vcpu, KVM_GET_XCRS, &s->xcrs);
  DO(g->vcpu, KVM_GET_DEBUGREGS, &s->debug);
  if (g->chips) s->deadline = get_deadline(g);
  get_msrs(g, &s->msrs);
  if (g->chips) DO(g->vcpu, KVM_GET_LAPIC, &s->lapic);
}

static bool has_chips(struct guest *g) {
  struct kvm_irqchip chip = {.chip_id = 0};
  return g->chips && !guest_ioctl(g->vm, KVM_GET_IRQCHIP, &chip);
}

static void save_vm(struct guest *g, struct vm_state *s) {
  DO(g->vm, KVM_GET_CLOCK, &s->clock);
  if (!has_chips(g)) return;
  for (unsigned k = 0; k < 3; k++) {
    s->chip[k].chip_id = k;
    DO(g->vm, KVM_GET_IRQCHIP, &s->chip[k]);
  }
  DO(g->vm, KVM_GET_PIT2, &s->pit);
}

/* ---- restoring ---- */

static void set_registers(struct guest *g, struct vcpu_state *s) {
  DO(g->vcpu, KVM_SET_SREGS2, &s->sregs);
  DO(g->vcpu, KVM_SET_REGS, &s->regs);
  DO(g->vcpu, KVM_SET_XSAVE, s->xsave);
  DO(g->vcpu, KVM_SET_XCRS, &s->xcrs);
}

static void set_msrs(struct guest *g, struct vcpu_state *s) {
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &s->msrs), s->msrs.head.nmsrs);
}

static void set_events(struct guest *g, const struct vcpu_state *s) {
  struct kvm_vcpu_events e = s->events;
  DO(g->vcpu, KVM_SET_VCPU_EVENTS, &e);
}

static void load_cpu(struct guest *g, struct vcpu_state *s, enum copy_order order) {
  DO(g->vcpu, KVM_SET_CPUID2, &s->cpuid);
  DO(g->vcpu, KVM_SET_TSC_KHZ, (void *)(uintptr_t)s->tsc_khz);
  if (order == COPY_AS_FIRECRACKER) DO(g->vcpu, KVM_SET_MP_STATE, &s->mp);
  if (order == COPY_AS_QEMU && g->chips) {
    DO(g->vcpu, KVM_SET_SREGS2, &s->sregs); /* the mode of the APIC */
    DO(g->vcpu, KVM_SET_LAPIC, &s->lapic);
  }
  set_registers(g, s);
  if (order == COPY_AS_FIRECRACKER) {
    DO(g->vcpu, KVM_SET_DEBUGREGS, &s->debug);
    if (g->chips) DO(g->vcpu, KVM_SET_LAPIC, &s->lapic);
  }
  set_msrs(g, s);
  set_events(g, s);
  if (order == COPY_AS_QEMU) {
    DO(g->vcpu, KVM_SET_MP_STATE, &s->mp);
    DO(g->vcpu, KVM_SET_DEBUGREGS, &s->debug);
  }
  if (g->chips) set_deadline(g, s->deadline);
}

static void load_vm(struct guest *g, struct vm_state *s) {
  s->clock.flags = 0;
  DO(g->vm, KVM_SET_CLOCK, &s->clock);
  if (!has_chips(g)) return;
  for (unsigned k = 0; k < 3; k++) DO(g->vm, KVM_SET_IRQCHIP, &s->chip[k]);
  DO(g->vm, KVM_SET_PIT2, &s->pit);
}

/* ---- what reads back ---- */

static bool msr_moves(u32 index) {
  return index == MSR_TSC || index == MSR_APERF || index == MSR_APERF - 1;
}

/* A counter that is set to about what the vCPU before it has becomes equal to that one's (api.rst, KVM_SET_MSRS: the heuristics
 * of KVM). */
#define SYNC_SLACK 10000000000ull

static void same_msrs(const struct msrs *a, const struct msrs *b, bool first) {
  CHECK_EQ(a->head.nmsrs, b->head.nmsrs);
  for (u32 k = 0; k < a->head.nmsrs; k++) {
    CHECK_EQ(a->entries[k].index, b->entries[k].index);
    if (msr_moves(a->entries[k].index)) {
      CHECK(a->entries[k].data <= b->entries[k].data + (first ? 0 : SYNC_SLACK));
    } else if (a->entries[k].data != b->entries[k].data) {
      check_failed(__FILE__, (int)a->entries[k].index, "MSR (line: its number)", b->entries[k].data, a->entries[k].data);
    }
  }
}

/* Timers count, and may have come to their end. */
static void same_lapic(struct kvm_lapic_state *a, struct kvm_lapic_state *b) {
  for (unsigned reg = 0; reg < sizeof(a->regs); reg += 16) {
    u32 was, is;
    memcpy(&was, a->regs + reg, 4);
    memcpy(&is, b->regs + reg, 4);
    if (reg == 0x390 || ((reg & 0xf80) == 0x200 && !(was & ~is))) continue;
    if (was != is) check_failed(__FILE__, (int)reg, "APIC register (line: its number)", is, was);
  }
}

#define SAME(field) CHECK(!memcmp(&a->field, &b->field, sizeof(a->field)))
static void same_cpu(struct guest *g, bool first, struct vcpu_state *a, struct vcpu_state *b) {
  SAME(mp);
  SAME(events);
  SAME(regs);
  SAME(sregs);
  SAME(xcrs);
  SAME(debug);
  SAME(xsave);
  CHECK_EQ(b->tsc_khz, a->tsc_khz);
  CHECK(b->deadline == a->deadline || !b->deadline); /* 0: it has come */
  CHECK_EQ(b->cpuid.head.nent, a->cpuid.head.nent);
  CHECK(!memcmp(a->cpuid.entries, b->cpuid.entries, a->cpuid.head.nent * sizeof(a->cpuid.entries[0])));
  same_msrs(&a->msrs, &b->msrs, first);
  if (g->chips && a->deadline == b->deadline) same_lapic(&a->lapic, &b->lapic);
}

static void same_vm(struct guest *g, struct vm_state *a, struct vm_state *b) {
  CHECK(b->clock.clock >= a->clock.clock);
  if (!has_chips(g)) return;
  SAME(chip[2]);
  for (unsigned k = 0; k < 2; k++) { /* the PIT may have ticked */
    a->chip[k].chip.pic.irr = b->chip[k].chip.pic.irr = 0;
    a->chip[k].chip.pic.last_irr = b->chip[k].chip.pic.last_irr = 0;
    SAME(chip[k]);
  }
  for (unsigned k = 0; k < 3; k++) {
    a->pit.channels[k].count_load_time = b->pit.channels[k].count_load_time = 0;
    SAME(pit.channels[k]);
  }
  SAME(pit.flags);
}

/* ---- both ---- */

static void replace(struct guest *old, struct guest *new) {
  struct guest *memory = new;
  memcpy(new->mem, old->mem, GUEST_MEM);
  new->next_table = old->next_table;
  new->cr3 = old->cr3;
  for (unsigned k = 1; k < old->slots; k++) {
    const struct guest_slot *s = &old->slot[k];
    void *host =
        (u8 *)s->host >= old->mem && (u8 *)s->host < old->mem + GUEST_MEM ? memory->mem + ((u8 *)s->host - old->mem) : s->host;
    guest_add_slot(new, s->space, s->gpa, host, s->size);
  }
}

static void swap(struct guest *a, struct guest *b) {
  struct guest t = *a;
  *a = *b;
  *b = t;
}

void copy_guest(struct guest *const *cpus, unsigned n, enum copy_order order) {
  struct vcpu_state *s = calloc(n, sizeof(*s)), *back = calloc(1, sizeof(*back));
  struct vm_state vm = {0}, vm_back = {0};
  struct guest *old = cpus[0], *new;
  for (unsigned k = 0; k < n; k++) save_cpu(cpus[k], &s[k]);
  save_vm(old, &vm);
  new = !old->chips ? guest_new() : has_chips(old) ? guest_new_chips() : guest_new_split();
  if (copy_prepare) copy_prepare(new);
  replace(old, new);
  struct guest *others[8] = {new};
  for (unsigned k = 1; k < n; k++) others[k] = guest_add_cpu(new, cpus[k]->id);
  if (order == COPY_AS_QEMU) load_vm(new, &vm);
  usleep(copy_pause_ms * 1000);
  for (unsigned k = 0; k < n; k++) load_cpu(others[k], &s[k], order);
  if (order != COPY_AS_QEMU) load_vm(new, &vm);
  for (unsigned k = 0; k < n; k++) {
    save_cpu(others[k], back);
    same_cpu(new, !k, &s[k], back);
  }
  save_vm(new, &vm_back);
  same_vm(new, &vm, &vm_back);
  for (unsigned k = 0; k < n; k++) swap(cpus[k], others[k]);
  for (unsigned k = 1; k < n; k++) guest_free_cpu(others[k]);
  guest_free(new); /* now the old one */
  free(s);
  free(back);
}
