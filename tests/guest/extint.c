/* Interrupts of the 8259s as a guest sees them: through LINT0 of the local APIC, beside the I/O APIC, and out of HLT. */
#include <pthread.h>
#include <unistd.h>
#include "inside.h"

#define A_LINT0     0x350
#define LINT_MASKED 0x10000u
#define LINT_EXTINT 0x700u

static volatile u32 count[256], order[16], ordered;

static void took(u32 vector) {
  count[vector] = count[vector] + 1;
  if (ordered < 16) order[ordered] = vector;
  ordered = ordered + 1;
}
#define PIC_HANDLER(vector)                                                                                                      \
  HANDLER pic_##vector(struct frame *f) {                                                                                        \
    took(vector);                                                                                                                \
    if (vector >= 0x28) outb(0xa0, 0x20);                                                                                        \
    outb(0x20, 0x20);                                                                                                            \
  }
PIC_HANDLER(0x21)
PIC_HANDLER(0x24)
PIC_HANDLER(0x25)
PIC_HANDLER(0x2a)
PIC_HANDLER(0x2b)
/* Not acknowledged to the PIC. */
HANDLER pic_0x27(struct frame *f) {
  took(0x27);
}
HANDLER apic_0x70(struct frame *f) {
  took(0x70);
  eoi();
}

/* Vectors 20h and 28h, all masked. */
static void pic_start(u8 icw4) {
  outb(0x20, 0x11);
  outb(0x21, 0x20);
  outb(0x21, 4);
  outb(0x21, icw4);
  outb(0xa0, 0x11);
  outb(0xa1, 0x28);
  outb(0xa1, 2);
  outb(0xa1, 1);
  outb(0x21, 0xff);
  outb(0xa1, 0xff);
}
/* Bits of GSIs 0 to 15. */
static void pic_unmask(u32 lines) {
  if (lines >> 8) lines |= 4;
  outb(0x21, (u8)~lines);
  outb(0xa1, (u8)(~lines >> 8));
}
static u8 pic_read(u16 port, u8 ocw3) {
  outb(port, ocw3);
  return inb(port);
}
#define READ_IRR 0x0a
#define READ_ISR 0x0b

/* The host sets lines at a report: 0x80 | GSI up, 0xc0 | GSI down, 0xa0 | GSI a pulse. */
#define UP    0x80
#define DOWN  0xc0
#define PULSE 0xa0

/* LINT0 as ExtINT and masked; edges of master and slave; priorities among them. */
static void guest_lint0(void) {
  apic_on();
  pic_start(1);
  pic_unmask(1u << 4 | 1u << 5 | 1u << 10);
  apic_write(A_LINT0, LINT_EXTINT);
  sti();
  report(PULSE | 4);
  settle();
  EXPECT_EQ(count[0x24], 1);
  report(PULSE | 10);
  settle();
  EXPECT_EQ(count[0x2a], 1);
  EXPECT_EQ(pic_read(0x20, READ_ISR) | pic_read(0xa0, READ_ISR), 0);
  apic_write(A_LINT0, LINT_EXTINT | LINT_MASKED);
  report(PULSE | 4);
  settle();
  EXPECT_EQ(count[0x24], 1);
  EXPECT_EQ(pic_read(0x20, READ_IRR), 1 << 4);
  apic_write(A_LINT0, LINT_EXTINT);
  settle();
  EXPECT_EQ(count[0x24], 2);
  /* Masked in the PIC, and then not. */
  pic_unmask(0);
  report(PULSE | 5);
  settle();
  EXPECT_EQ(count[0x25], 0);
  pic_unmask(1u << 5);
  settle();
  EXPECT_EQ(count[0x25], 1);
  /* Together: the slave's lines come at the place of line 2. */
  cli();
  pic_unmask(1u << 4 | 1u << 5 | 1u << 10 | 1u << 11 | 1u << 1);
  report(PULSE | 5);
  report(PULSE | 11);
  report(PULSE | 4);
  report(PULSE | 10);
  report(PULSE | 1);
  ordered = 0;
  sti();
  settle();
  EXPECT_EQ(ordered, 5);
  EXPECT_EQ(order[0], 0x21);
  EXPECT_EQ(order[1], 0x2a);
  EXPECT_EQ(order[2], 0x2b);
  EXPECT_EQ(order[3], 0x24);
  EXPECT_EQ(order[4], 0x25);
  done();
}

/* A request that is gone when it is acknowledged: line 7, not in service. */
static void guest_spurious(void) {
  apic_on();
  pic_start(1);
  pic_unmask(1u << 4);
  apic_write(A_LINT0, LINT_EXTINT);
  outb(0x4d0, 1 << 4); /* level-triggered: its request ends with the line */
  cli();
  report(UP | 4);
  EXPECT_EQ(pic_read(0x20, READ_IRR), 1 << 4);
  report(DOWN | 4);
  EXPECT_EQ(pic_read(0x20, READ_IRR), 0);
  sti();
  settle();
  EXPECT_EQ(count[0x24], 0);
  EXPECT_EQ(count[0x27], 0);
  done();
}

/* A level-triggered line comes again until it falls; the handler makes the host lower it the third time. */
HANDLER pic_level(struct frame *f) {
  took(0x25);
  if (count[0x25] == 3) report(DOWN | 5);
  outb(0x20, 0x20);
}
static void guest_level(void) {
  apic_on();
  pic_start(1);
  pic_unmask(1u << 5);
  apic_write(A_LINT0, LINT_EXTINT);
  outb(0x4d0, 1 << 5);
  sti();
  report(UP | 5);
  settle();
  EXPECT_EQ(count[0x25], 3);
  done();
}

/* Automatic EOI: nothing stays in service, the next edge comes without a command. */
static void guest_auto_eoi(void) {
  apic_on();
  pic_start(3);
  pic_unmask(1u << 7);
  apic_write(A_LINT0, LINT_EXTINT);
  sti();
  for (unsigned n = 1; n < 4; n++) {
    report(PULSE | 7);
    settle();
    EXPECT_EQ(count[0x27], n);
    EXPECT_EQ(pic_read(0x20, READ_ISR), 0);
  }
  done();
}

/* Before a vector of the APIC, whatever TPR and what is in service there; the same line through the I/O APIC, too. */
static void guest_both(void) {
  apic_on();
  pic_start(1);
  pic_unmask(1u << 4);
  apic_write(A_LINT0, LINT_EXTINT);
  ioapic_pin(4, 0x70);
  cli();
  report(PULSE | 4);
  ordered = 0;
  sti();
  settle();
  EXPECT_EQ(ordered, 2);
  EXPECT_EQ(order[0], 0x24);
  EXPECT_EQ(order[1], 0x70);
  write_cr8(15);
  report(PULSE | 4);
  settle();
  EXPECT_EQ(count[0x24], 2);
  EXPECT_EQ(count[0x70], 1);
  write_cr8(0);
  settle();
  EXPECT_EQ(count[0x70], 2);
  done();
}

/* HLT ends by an ExtINT, by the I/O APIC, and not by what is masked or comes with IF clear; the NMI ends that. */
static volatile u32 halts;
HANDLER take_nmi(struct frame *f) {
  took(2);
}
static void guest_halts(void) {
  apic_on();
  pic_start(1);
  pic_unmask(1u << 4);
  apic_write(A_LINT0, LINT_EXTINT);
  report(1); /* a thread raises line 4 from now on */
  halt_once();
  EXPECT_EQ(count[0x24], 1);
  halts = 1;
  pic_unmask(0);
  ioapic_pin(4, 0x70);
  report(2);
  halt_once();
  EXPECT_EQ(count[0x70], 1);
  halts = 2;
  report(3); /* line 4, and an NMI later */
  __asm__ volatile("cli; hlt" ::: "memory");
  EXPECT_EQ(count[0x70], 1);
  EXPECT_EQ(count[2], 1);
  EXPECT(apic_bit(A_IRR, 0x70));
  halts = 3;
  sti();
  settle();
  EXPECT_EQ(count[0x70], 2);
  done();
}

/* ---- host side ---- */

static struct guest *start(void (*f)(void)) {
  struct guest *g = start_function(f);
  alarm(300);
  inside_catch(g);
  for (unsigned n = 0; n < 256; n++) count[n] = 0;
  ordered = halts = 0;
  HANDLE(g, 2, take_nmi);
  HANDLE(g, 0x21, pic_0x21);
  HANDLE(g, 0x24, pic_0x24);
  HANDLE(g, 0x25, pic_0x25);
  HANDLE(g, 0x27, pic_0x27);
  HANDLE(g, 0x2a, pic_0x2a);
  HANDLE(g, 0x2b, pic_0x2b);
  HANDLE(g, 0x70, apic_0x70);
  return g;
}

static void line(struct guest *g, unsigned gsi, unsigned level) {
  struct kvm_irq_level l = {.irq = gsi, .level = level};
  CHECK_EQ(guest_ioctl(g->vm, KVM_IRQ_LINE, &l), 0);
}

static void serve(struct guest *g) {
  unsigned r;
  while ((r = guest_next(g)) & 0x80 && r < 0x100) {
    unsigned gsi = r & 0x1f, how = r & 0xe0;
    if (how != DOWN) line(g, gsi, 1);
    if (how != UP) line(g, gsi, 0);
  }
  CHECK_EQ(r, DONE);
  inside_check();
  guest_free(g);
}

static void lint0(void) {
  serve(start(guest_lint0));
}
static void spurious(void) {
  serve(start(guest_spurious));
}
static void level(void) {
  struct guest *g = start(guest_level);
  HANDLE(g, 0x25, pic_level);
  serve(g);
}
static void auto_eoi(void) {
  serve(start(guest_auto_eoi));
}
static void both(void) {
  serve(start(guest_both));
}

/* Once the vCPU is halted. */
static void *pulse_thread(void *arg) {
  guest_wait_halted(arg);
  line(arg, 4, 1);
  line(arg, 4, 0);
  return NULL;
}
static void *nmi_thread(void *arg) {
  pulse_thread(arg);
  usleep(10000); /* the HLT must not end before the NMI */
  struct kvm_msi m = {.address_lo = 0xfee00000, .data = ICR_NMI};
  CHECK_EQ(guest_ioctl(((struct guest *)arg)->vm, KVM_SIGNAL_MSI, &m), 1);
  return NULL;
}

static void halts_end(void) {
  struct guest *g = start(guest_halts);
  pthread_t t;
  for (unsigned n = 1; n <= 3; n++) {
    CHECK_EQ(guest_next(g), n);
    CHECK_EQ(halts, n - 1);
    if (n > 1) pthread_join(t, NULL);
    guest_watch_halts(g);
    pthread_create(&t, NULL, n == 3 ? nmi_thread : pulse_thread, g);
  }
  CHECK_EQ(guest_next(g), DONE);
  pthread_join(t, NULL);
  inside_check();
  guest_free(g);
}

GUEST_MAIN({"lint0", lint0}, {"spurious", spurious}, {"level", level}, {"auto-eoi", auto_eoi}, {"both", both},
           {"halts", halts_end})
