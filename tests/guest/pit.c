/* The 8254 by its ports: what the counters hold in modes 0, 2 and 3, read-back status, port 61h; ticks of channel 0 by both
 * chips. Times have lower bounds only. */
#include "inside.h"

#define PIT_HZ 1193182ul

static volatile u32 count;

HANDLER take_tick(struct frame *f) {
  count = count + 1;
  eoi();
}
HANDLER take_pic_tick(struct frame *f) {
  count = count + 1;
  outb(0x20, 0x20);
}

static void program(unsigned channel, u8 mode, u16 value) {
  outb(0x43, (u8)(channel << 6 | 0x30 | mode << 1));
  outb((u16)(0x40 + channel), (u8)value);
  outb((u16)(0x40 + channel), (u8)(value >> 8));
}
static u16 read_count(unsigned channel) {
  u8 low = inb((u16)(0x40 + channel));
  return (u16)(low | inb((u16)(0x40 + channel)) << 8);
}
static u16 latched(unsigned channel) {
  outb(0x43, (u8)(channel << 6));
  return read_count(channel);
}
static u8 status(unsigned channel) {
  outb(0x43, (u8)(0xe0 | 2 << channel));
  return inb((u16)(0x40 + channel));
}
#define OUT        0x80
#define NULL_COUNT 0x40

/* Nothing more comes from the channel: mode 0 has counted to its end. */
static void stop_channel(unsigned channel) {
  program(channel, 0, 1);
  while (!(status(channel) & OUT)) relax();
}
/* How often a value is read that has to change: so many equal ones are no accident, whenever the reads happen. */
#define MANY 100000u

static u64 ticks_of(u64 tsc) {
  return tsc * PIT_HZ / 1000 / ticks_per_ms;
}

/* Mode 2: from the count down to 1, over and over; never faster than time. */
static void guest_mode2(void) {
  program(0, 2, 50000);
  EXPECT_EQ(status(0) & 0x3f, 0x34);
  EXPECT_EQ(status(0) & NULL_COUNT, 0);
  u64 start = rdtsc();
  u16 last = latched(0);
  u32 wraps = 0, passed = 0;
  while (wraps < 2) {
    u16 v = latched(0);
    u64 now = rdtsc();
    EXPECT(v >= 1 && v <= 50000);
    if (v > last) wraps++;
    passed += v > last ? last + 50000u - v : (u32)(last - v);
    EXPECT(passed <= ticks_of(now - start) + 2);
    last = v;
  }
  /* A latched count stays until it is read; the second latch is ignored. */
  outb(0x43, 0);
  wait_ms(1);
  outb(0x43, 0);
  u16 old = read_count(0), now = read_count(0);
  for (unsigned n = 0; now == old && n < MANY; n++) now = read_count(0);
  EXPECT(old != now);
  done();
}

/* Mode 3: even, by two. */
static void guest_mode3(void) {
  program(2, 3, 0); /* 10000h */
  outb(0x61, 1);    /* its gate */
  EXPECT_EQ(status(2) & 0x3f, 0x36);
  for (unsigned n = 0; n < 200; n++) EXPECT_EQ(latched(2) & 1, 0);
  program(2, 3, 1001);
  for (unsigned n = 0; n < 200; n++) {
    u16 v = latched(2);
    EXPECT(v <= 1000 && !(v & 1));
  }
  /* The output is high for one half. */
  program(2, 3, 50); /* 42 us */
  u32 high = 0, low = 0;
  for (unsigned n = 0; (!high || !low) && n < MANY; n++) {
    if (inb(0x61) & 0x20)
      high = 1;
    else
      low = 1;
  }
  EXPECT(high && low);
  done();
}

/* Mode 0: the output rises at the end of the count, not before. */
static void guest_mode0(void) {
  outb(0x61, 1);
  outb(0x43, 0xb0);
  EXPECT_EQ(status(2) & (OUT | NULL_COUNT), NULL_COUNT); /* no count yet */
  EXPECT_EQ(inb(0x61) & 0x20, 0);
  u64 start = rdtsc();
  outb(0x42, 0x00);
  outb(0x42, 0x20); /* 8192: 6.9 ms */
  EXPECT_EQ(status(2) & 0x3f, 0x30);
  while (!(inb(0x61) & 0x20)) relax();
  EXPECT(ticks_of(rdtsc() - start) >= 8191);
  EXPECT_EQ(status(2) & (OUT | NULL_COUNT), OUT);
  /* The gate holds it. */
  program(2, 0, 0xffff);
  outb(0x61, 0);
  u16 held = latched(2);
  wait_ms(2);
  EXPECT_EQ(latched(2), held);
  outb(0x61, 1);
  u16 now = held;
  for (unsigned n = 0; now == held && n < MANY; n++) now = latched(2);
  EXPECT(now != held);
  done();
}

/* Port 61h: gate and speaker bits as written, refresh toggles. */
static void guest_port61(void) {
  for (u8 v = 0; v < 4; v++) {
    outb(0x61, v);
    EXPECT_EQ(inb(0x61) & 3, v);
  }
  u8 first = inb(0x61) & 0x10, now = first;
  for (unsigned n = 0; now == first && n < MANY; n++) now = inb(0x61) & 0x10;
  EXPECT(now != first);
  done();
}

/* One byte at a time: low byte only, high byte only, and BCD. */
static void guest_access(void) {
  outb(0x61, 1);
  outb(0x43, 0x90); /* channel 2, low byte, mode 0 */
  outb(0x42, 200);
  EXPECT_EQ(status(2) & 0x3f, 0x10);
  outb(0x43, 0xa4); /* high byte, mode 2 */
  outb(0x42, 0x80);
  u8 v = inb(0x42);
  EXPECT(v <= 0x80);
  EXPECT_EQ(status(2) & 0x3f, 0x24);
  outb(0x43, 0xb5); /* both, mode 2, BCD */
  outb(0x42, 0x99);
  outb(0x42, 0x99);
  for (unsigned n = 0; n < 200; n++) {
    u16 bcd = latched(2);
    for (unsigned k = 0; k < 16; k += 4) EXPECT((bcd >> k & 15) <= 9);
  }
  done();
}

/* With the pin masked: a tick that was on its way when the channel stopped has come. */
static void silence(void) {
  stop_channel(0);
  wait_ms(20);
  count = 0;
}

/* Channel 0 in mode 2, 3 and 0 through the I/O APIC, and in mode 2 through the 8259 and LINT0. */
static void guest_ticks(void) {
  apic_on();
  pic_off();
  sti();
  for (u8 mode = 2; mode < 4; mode++) {
    silence();
    ioapic_pin(0, 0x70);
    u64 start = rdtsc();
    program(0, mode, 2386); /* 2 ms */
    wait_count(&count, 5);
    EXPECT(count >= 5);
    EXPECT(ticks_of(rdtsc() - start) >= 5 * 2386 - 2);
    ioapic_pin(0, 0x10070);
  }
  silence();
  ioapic_pin(0, 0x70);
  u64 start = rdtsc();
  program(0, 0, 2386);
  wait_count(&count, 1);
  EXPECT(ticks_of(rdtsc() - start) >= 2385);
  wait_ms(5);
  EXPECT_EQ(count, 1); /* once */
  ioapic_pin(0, 0x10070);
  silence();
  outb(0x20, 0x11);
  outb(0x21, 0x20);
  outb(0x21, 4);
  outb(0x21, 1);
  outb(0x21, 0xfe);
  apic_write(0x350, 0x700);
  start = rdtsc();
  program(0, 2, 2386);
  wait_count(&count, 5);
  EXPECT(count >= 5);
  EXPECT(ticks_of(rdtsc() - start) >= 5 * 2386 - 2);
  done();
}

/* ---- host side ---- */

static void run(void (*f)(void)) {
  struct guest *g = start_function(f);
  inside_catch(g);
  count = 0;
  HANDLE(g, 0x70, take_tick);
  HANDLE(g, 0x20, take_pic_tick);
  inside_run(g);
}
static void mode2(void) {
  run(guest_mode2);
}
static void mode3(void) {
  run(guest_mode3);
}
static void mode0(void) {
  run(guest_mode0);
}
static void port61(void) {
  run(guest_port61);
}
static void byte_access(void) {
  run(guest_access);
}
static void ticks(void) {
  run(guest_ticks);
}

GUEST_MAIN({"mode-2", mode2}, {"mode-3", mode3}, {"mode-0", mode0}, {"port-61", port61}, {"byte-access", byte_access},
           {"ticks", ticks})
