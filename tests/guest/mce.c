/* Machine checks that the client injects (KVM_X86_SETUP_MCE, KVM_X86_SET_MCE; api.rst 4.104-4.106): #MC with the bank for the
 * guest to read, corrected errors, CMCI, what is switched off, and shutdown.  SDM Vol. 3B chapter 16. */
#include <errno.h>
#include "inside.h"

#define MCG_STATUS 0x17au
#define MCG_CTL    0x17bu
#define CTL2(n)    (0x280u + (n))
#define CTL(n)     (0x400u + 4 * (n))
#define STATUS(n)  (0x401u + 4 * (n))
#define ADDR(n)    (0x402u + 4 * (n))
#define MISC(n)    (0x403u + 4 * (n))
#define A_LVT_CMCI 0x2f0

#define CAP_CTL     (1ull << 8)
#define CAP_CMCI    (1ull << 10)
#define CAP_SER     (1ull << 24)
#define VAL         (1ull << 63)
#define OVER        (1ull << 62)
#define UC          (1ull << 61)
#define EN          (1ull << 60)
#define S           (1ull << 56)
#define AR          (1ull << 55)
#define RIPV        1ull
#define MCIP        4ull
#define CR4_MCE     0x40ull
#define CTL2_ENABLE (1ull << 30)

#define BANKS 10u
#define BANK  3u

static volatile u32 checks, cmcis;
static volatile u64 mcg_status, status, address, misc, interrupted_at;

HANDLER take_mc(struct frame *f) {
  checks = checks + 1;
  interrupted_at = f->rip;
  mcg_status = rdmsr(MCG_STATUS);
  status = rdmsr(STATUS(BANK));
  address = rdmsr(ADDR(BANK));
  misc = rdmsr(MISC(BANK));
  wrmsr(MCG_STATUS, 0);
}
HANDLER take_cmci(struct frame *f) {
  cmcis = cmcis + 1;
  status = rdmsr(STATUS(BANK));
  eoi();
}

static u32 try_wrmsr(u32 index, u64 v) {
  return TRY("mov %0, %%ecx\n mov %1, %%rax\n mov %%rax, %%rdx\n shr $32, %%rdx\n wrmsr", "r"(index), "r"(v));
}
static u32 try_rdmsr(u32 index) {
  return TRY("mov %0, %%ecx\n rdmsr", "r"(index));
}

static struct guest *start(void (*f)(void), u64 cap) {
  struct guest *g = start_function(f);
  u64 supported = 0, set = BANKS | cap;
  inside_catch(g);
  HANDLE(g, 18, take_mc);
  HANDLE(g, 0x66, take_cmci);
  checks = cmcis = 0;
  CHECK_EQ(guest_ioctl(g->sys, KVM_X86_GET_MCE_CAP_SUPPORTED, &supported), 0);
  CHECK_EQ(supported & cap, cap);
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_X86_SETUP_MCE, &set), 0);
  return g;
}

static int inject(struct guest *g, u64 st, u64 mcg) {
  struct kvm_x86_mce m = {.status = st, .addr = 0x123000, .misc = 0x8c, .mcg_status = mcg, .bank = BANK};
  return guest_ioctl(g->vcpu, KVM_X86_SET_MCE, &m);
}

/* ---- uncorrected errors ---- */

static void guest_uncorrected(void) {
  write_cr4(read_cr4() | CR4_MCE);
  EXPECT_EQ(rdmsr(0x179) & 0xff, BANKS);
  EXPECT_EQ(rdmsr(MCG_CTL), ~0ull);
  EXPECT_EQ(rdmsr(CTL(BANK)), ~0ull);
  report(1);
  EXPECT_EQ(checks, 1);
  EXPECT_EQ(mcg_status, RIPV | MCIP);
  EXPECT_EQ(status, VAL | UC | EN | S | AR);
  EXPECT_EQ(address, 0x123000);
  EXPECT_EQ(misc, 0x8c);
  EXPECT_EQ(rdmsr(MCG_STATUS), 0);
  report(2); /* the bank still has the first */
  EXPECT_EQ(checks, 2);
  EXPECT_EQ(status, VAL | OVER | UC | EN | S | AR);
  EXPECT_EQ(try_wrmsr(STATUS(BANK), 1), GP0);
  wrmsr(STATUS(BANK), 0);
  /* Not enabled: nothing is told, nothing is kept. */
  wrmsr(CTL(BANK), 0);
  report(3);
  EXPECT_EQ(checks, 2);
  EXPECT_EQ(rdmsr(STATUS(BANK)), 0);
  wrmsr(CTL(BANK), ~0ull);
  wrmsr(MCG_CTL, 0);
  report(4);
  EXPECT_EQ(checks, 2);
  EXPECT_EQ(rdmsr(STATUS(BANK)), 0);
  wrmsr(MCG_CTL, ~0ull);
  EXPECT_EQ(try_wrmsr(CTL(BANK), 5), GP0); /* all or none */
  EXPECT_EQ(try_wrmsr(MCG_CTL, 5), GP0);
  EXPECT_EQ(try_rdmsr(STATUS(BANKS)), GP0);
  report(5);
  EXPECT_EQ(checks, 3);
  report(6); /* while one is in progress: shutdown */
  done();
}

static void uncorrected(void) {
  struct guest *g = start(guest_uncorrected, CAP_CTL | CAP_SER);
  for (unsigned n = 1; n <= 4; n++) {
    CHECK_EQ(guest_next(g), n);
    CHECK_EQ(inject(g, VAL | UC | EN | S | AR, RIPV | MCIP), 0);
  }
  CHECK_EQ(guest_next(g), 5);
  u64 ip = guest_regs(g).rip;
  CHECK_EQ(inject(g, VAL | UC | EN | S | AR, RIPV | MCIP), 0);
  CHECK_EQ(guest_next(g), 6);
  CHECK_EQ(interrupted_at, ip); /* between two instructions */
  inside_check();
  struct {
    struct kvm_msrs head;
    struct kvm_msr_entry entry;
  } in_progress = {.head.nmsrs = 1, .entry = {.index = MCG_STATUS, .data = MCIP}};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_SET_MSRS, &in_progress), 1);
  CHECK_EQ(inject(g, VAL | UC | EN | S | AR, RIPV | MCIP), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  guest_free(g);
}

static void guest_off(void) {
  report(1); /* CR4.MCE is clear */
  done();
}

static void switched_off(void) {
  struct guest *g = start(guest_off, CAP_CTL | CAP_SER);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(inject(g, VAL | UC | EN, RIPV | MCIP), 0);
  CHECK_EQ(guest_next(g), EXIT(KVM_EXIT_SHUTDOWN));
  guest_free(g);
}

/* ---- corrected errors and those without an action ---- */

static void guest_corrected(void) {
  write_cr4(read_cr4() | CR4_MCE);
  pic_off();
  apic_on();
  sti();
  apic_write(A_LVT_CMCI, 0x66);
  wrmsr(CTL2(BANK), CTL2_ENABLE | 1);
  EXPECT_EQ(rdmsr(CTL2(BANK)), CTL2_ENABLE | 1);
  report(1); /* corrected: for who looks */
  EXPECT_EQ(rdmsr(STATUS(BANK)), VAL | EN);
  report(2);
  EXPECT_EQ(rdmsr(STATUS(BANK)), VAL | OVER | EN);
  EXPECT_EQ(cmcis, 0);
  report(3); /* uncorrected, no action: CMCI */
  settle();
  EXPECT_EQ(cmcis, 1);
  EXPECT_EQ(status, VAL | UC | EN);
  report(4); /* a corrected one does not take its place */
  EXPECT_EQ(rdmsr(STATUS(BANK)), VAL | OVER | UC | EN);
  wrmsr(CTL2(BANK), 1);
  report(5);
  settle();
  EXPECT_EQ(cmcis, 1);
  EXPECT_EQ(rdmsr(STATUS(BANK)), VAL | UC | EN);
  wrmsr(CTL2(BANK), CTL2_ENABLE | 1);
  apic_write(A_LVT_CMCI, 0x10066);
  report(6);
  settle();
  EXPECT_EQ(cmcis, 1);
  EXPECT_EQ(checks, 0);
  done();
}

static void corrected(void) {
  static const u64 errors[] = {VAL | EN, VAL | EN, VAL | UC | EN, VAL | EN, VAL | UC | EN, VAL | UC | EN};
  struct guest *g = start(guest_corrected, CAP_CTL | CAP_SER | CAP_CMCI);
  for (unsigned n = 0; n < 6; n++) {
    CHECK_EQ(guest_next(g), n + 1);
    CHECK_EQ(inject(g, errors[n], 0), 0);
  }
  inside_run(g);
}

static void guest_no_cmci(void) {
  pic_off();
  apic_on();
  sti();
  EXPECT_EQ(try_rdmsr(CTL2(BANK)), GP0);
  EXPECT_EQ(try_wrmsr(CTL2(BANK), CTL2_ENABLE), GP0);
  report(1);
  settle();
  EXPECT_EQ(cmcis, 0);
  EXPECT_EQ(rdmsr(STATUS(BANK)), VAL | UC | EN);
  done();
}

static void no_cmci(void) {
  struct guest *g = start(guest_no_cmci, CAP_CTL);
  CHECK_EQ(guest_next(g), 1);
  CHECK_EQ(inject(g, VAL | UC | EN, 0), 0);
  inside_run(g);
}

/* ---- the ioctls' own errors ---- */

static void refused(void) {
  struct guest *g = start(guest_off, 0);
  static const u64 caps[] = {0, 33, 1 | 1ull << 9, 1 | 1ull << 40};
  for (unsigned n = 0; n < sizeof(caps) / sizeof(caps[0]); n++) {
    u64 cap = caps[n];
    CHECK_EQ(guest_ioctl(g->vcpu, KVM_X86_SETUP_MCE, &cap), -1);
    CHECK_EQ(errno, EINVAL);
  }
  CHECK_EQ(inject(g, UC | EN, 0), -1); /* not valid */
  CHECK_EQ(errno, EINVAL);
  struct kvm_x86_mce m = {.status = VAL, .bank = BANKS};
  CHECK_EQ(guest_ioctl(g->vcpu, KVM_X86_SET_MCE, &m), -1);
  CHECK_EQ(errno, EINVAL);
  guest_free(g);
}

GUEST_MAIN({"uncorrected", uncorrected}, {"switched-off", switched_off}, {"corrected", corrected}, {"no-cmci", no_cmci},
           {"refused", refused})
