/* CPUID bits that follow run-time state: right at the next CPUID, and changed by their own cause alone (the vCPU's statistic
 * "cpuid_updates" counts the entries that were written); and no event searches the table ("cpuid_searches"). */
#include "inside.h"

#define CR4_PGE     0x80ull
#define CR4_OSXSAVE 0x40000ull
#define CR4_PKE     0x400000ull

#define MISC_ENABLE 0x1a0u
#define MWAIT       (1ull << 18)
#define APIC_ENABLE 0x800ull

static volatile u32 has_pku, quirk;

static u32 cpuid(u32 leaf, u32 sub, unsigned reg) {
  u32 r[4];
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
  return r[reg];
}
static u32 osxsave(void) {
  return cpuid(1, 0, 2) >> 27 & 1;
}
static u32 ospke(void) {
  return cpuid(7, 0, 2) >> 4 & 1;
}
static u32 mwait(void) {
  return cpuid(1, 0, 2) >> 3 & 1;
}
static u32 apic(void) {
  return cpuid(1, 0, 3) >> 9 & 1;
}
static void xsetbv(u32 v) {
  __asm__ volatile("xsetbv" ::"a"(v), "d"(0), "c"(0) : "memory");
}

/* The host counts from the last report to this one: n entries must have been written. */
static void written(u8 n) {
  report(n);
}

static void guest_bits(void) {
  u64 cr4 = read_cr4() & ~(CR4_OSXSAVE | CR4_PKE | CR4_PGE);
  write_cr4(cr4);
  written(0x40); /* from here */
  for (unsigned n = 0; n < 2; n++) {
    EXPECT_EQ(osxsave(), 0);
    write_cr4(cr4 | CR4_OSXSAVE);
    written(1);
    EXPECT_EQ(osxsave(), 1);
    write_cr4(cr4 | CR4_OSXSAVE | CR4_PGE);
    written(0);
    EXPECT_EQ(osxsave(), 1);
    write_cr4(cr4);
    written(1);
    EXPECT_EQ(osxsave(), 0);
    EXPECT_EQ(ospke(), 0);
    if (!has_pku) continue;
    write_cr4(cr4 | CR4_PKE);
    written(1);
    EXPECT_EQ(ospke(), 1);
    write_cr4(cr4 | CR4_OSXSAVE);
    written(2);
    EXPECT_EQ(ospke(), 0);
    EXPECT_EQ(osxsave(), 1);
    write_cr4(cr4);
    written(1);
  }
  /* XCR0: the sizes of both forms of the save area. */
  write_cr4(cr4 | CR4_OSXSAVE);
  written(1);
  u8 sizes = cpuid(0xd, 1, 0) & 0xa ? 2 : 1;
  EXPECT_EQ(cpuid(0xd, 0, 1), 0x240);
  xsetbv(3);
  written(sizes);
  EXPECT_EQ(cpuid(0xd, 0, 1), 0x240);
  xsetbv(3);
  written(0);
  if (cpuid(0xd, 0, 0) & 4) {
    xsetbv(7);
    written(sizes);
    EXPECT_EQ(cpuid(0xd, 0, 1), 0x340);
    if (sizes == 2) EXPECT_EQ(cpuid(0xd, 1, 1), 0x340);
  }
  EXPECT_EQ(TRY("xor %%ecx, %%ecx\n xor %%edx, %%edx\n mov $4, %%eax\n xsetbv", "b"(0)), GP0);
  written(0);
  /* MONITOR, where the client switched the quirk off that keeps it apart. */
  u64 misc = rdmsr(MISC_ENABLE);
  u32 before = mwait();
  wrmsr(MISC_ENABLE, misc ^ MWAIT);
  written(quirk ? 0 : 1);
  EXPECT_EQ(mwait(), quirk ? before : !!(~misc & MWAIT));
  wrmsr(MISC_ENABLE, misc);
  written(quirk ? 0 : 1);
  wrmsr(MISC_ENABLE, misc);
  written(0);
  EXPECT_EQ(mwait(), before);
  /* The APIC. */
  u64 base = rdmsr(MSR_APIC_BASE);
  EXPECT_EQ(apic(), 1);
  wrmsr(MSR_APIC_BASE, base & ~APIC_ENABLE);
  written(1);
  EXPECT_EQ(apic(), 0);
  wrmsr(MSR_APIC_BASE, base);
  written(1);
  EXPECT_EQ(apic(), 1);
  done();
}

static void bits_with(bool with_quirk) {
  struct guest *g = start_function(guest_bits);
  inside_catch(g);
  has_pku = guest_shows(g, 7, 2, 3);
  quirk = with_quirk;
  if (!with_quirk) CHECK_EQ(guest_enable(g, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT), 0);
  guest_cpuid(g, 1, 2, 0, 8); /* MONITOR is not among what KVM supports: clients add it */
  u64 last = 0;
  unsigned r;
  while ((r = guest_next(g)) < DONE) {
    u64 now = guest_stat(g->vcpu, "cpuid_updates");
    if (r != 0x40) CHECK_EQ(now - last, r);
    last = now;
  }
  CHECK_EQ(r, DONE);
  inside_check();
  guest_free(g);
}

static void bits(void) {
  bits_with(true);
}
static void without_quirk(void) {
  bits_with(false);
}

/* ---- a million events in random order; after each one every bit is worked out anew ---- */

enum { EVENTS = 1000000, COMPONENTS = 10 };

static volatile struct {
  u64 updates, leaves; /* entries that had to be written, CPUID instructions */
  u64 events[6];
} told;
static volatile struct {
  u32 size, offset, aligned;
} component[COMPONENTS];

static u32 leaf(u32 function, u32 sub, unsigned reg) {
  told.leaves = told.leaves + 1;
  return cpuid(function, sub, reg);
}

/* SDM Vol. 1 13.4.2 and 13.4.3: the areas of XSAVE and of XSAVEC for these components. */
static u32 standard_size(u64 xcr0) {
  u32 size = 576;
  for (unsigned n = 2; n < COMPONENTS; n++)
    if (xcr0 >> n & 1 && component[n].offset + component[n].size > size) size = component[n].offset + component[n].size;
  return size;
}
static u32 packed_size(u64 xcr0) {
  u32 size = 576;
  for (unsigned n = 2; n < COMPONENTS; n++)
    if (xcr0 >> n & 1) size = (component[n].aligned ? (size + 63) & ~63u : size) + component[n].size;
  return size;
}

static u64 next_random(u64 *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

static void guest_events(void) {
  u64 cr4 = read_cr4() & ~(CR4_OSXSAVE | CR4_PKE), xcr0 = 1, misc = rdmsr(MISC_ENABLE), base = rdmsr(MSR_APIC_BASE), seed = 22;
  u64 choices[] = {1, 3, 7, 0xe7, 0x203, 0x2e7};
  u32 supported = leaf(0xd, 0, 0);
  bool packed = leaf(0xd, 1, 0) & 0xa, xsaves = leaf(0xd, 1, 0) & 8;
  for (unsigned n = 2; n < COMPONENTS; n++) {
    if (!(supported >> n & 1)) continue;
    component[n].size = leaf(0xd, n, 0);
    component[n].offset = leaf(0xd, n, 1);
    component[n].aligned = leaf(0xd, n, 2) & 2;
  }
  __asm__ volatile("mov %0, %%cr4" ::"r"(cr4) : "memory");
  told.leaves = 0;
  report(0x40);
  for (unsigned n = 0; n < EVENTS; n++) {
    u64 random = next_random(&seed), choice = choices[(random >> 8) % 6];
    unsigned event = random % 6;
    if (event == 1 && !has_pku) event = 0;
    if (event == 2 && (!(cr4 & CR4_OSXSAVE) || (choice & ~(u64)supported))) event = 0;
    if (event == 3 && !xsaves) event = 0;
    told.events[event] = told.events[event] + 1;
    switch (event) {
    case 0:
    case 1:
      cr4 ^= event ? CR4_PKE : CR4_OSXSAVE;
      __asm__ volatile("mov %0, %%cr4" ::"r"(cr4) : "memory");
      told.updates = told.updates + 1;
      break;
    case 2:
      xsetbv((u32)choice);
      told.updates = told.updates + (choice != xcr0) * (1 + packed);
      xcr0 = choice;
      break;
    case 3: /* there are no supervisor components */
      wrmsr(0xda0, 0);
      told.updates = told.updates + 1 + packed;
      break;
    case 4:
      base ^= APIC_ENABLE;
      wrmsr(MSR_APIC_BASE, base);
      told.updates = told.updates + 1;
      break;
    default:
      misc ^= MWAIT;
      wrmsr(MISC_ENABLE, misc);
      told.updates = told.updates + 1;
    }
    u32 one[4];
    told.leaves = told.leaves + 1;
    __asm__ volatile("cpuid" : "=a"(one[0]), "=b"(one[1]), "=c"(one[2]), "=d"(one[3]) : "a"(1), "c"(0));
    EXPECT_EQ(one[2] >> 27 & 1, !!(cr4 & CR4_OSXSAVE));
    EXPECT_EQ(one[2] >> 3 & 1, !!(misc & MWAIT));
    EXPECT_EQ(one[3] >> 9 & 1, !!(base & APIC_ENABLE));
    EXPECT_EQ(leaf(7, 0, 2) >> 4 & 1, !!(cr4 & CR4_PKE));
    EXPECT_EQ(leaf(0xd, 0, 1), standard_size(xcr0));
    if (packed) EXPECT_EQ(leaf(0xd, 1, 1), packed_size(xcr0));
  }
  done();
}

static void events(void) {
  struct guest *g = start_function(guest_events);
  inside_catch(g);
  has_pku = guest_shows(g, 7, 2, 3);
  CHECK_EQ(guest_enable(g, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT), 0);
  CHECK_EQ(guest_next(g), 0x40);
  u64 updates = guest_stat(g->vcpu, "cpuid_updates"), searches = guest_stat(g->vcpu, "cpuid_searches");
  CHECK_EQ(guest_next(g), DONE);
  CHECK_EQ(guest_stat(g->vcpu, "cpuid_updates") - updates, told.updates);
  CHECK_EQ(guest_stat(g->vcpu, "cpuid_searches") - searches, told.leaves); /* CPUID's own, none for an event */
  for (unsigned n = 0; n < 6; n++) CHECK((n == 1 && !has_pku) || n == 2 || n == 3 || told.events[n] > EVENTS / 10);
  inside_check();
  guest_free(g);
}

GUEST_MAIN({"bits", bits}, {"without-quirk", without_quirk}, {"events", events})
