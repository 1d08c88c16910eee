/* A PS/2 keyboard controller with nothing plugged in: what probing guests want to hear, and its reset line.
 *
 * Manual: IBM PS/2 Hardware Interface Technical Reference, keyboard and auxiliary device controller. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/dev/dev.h"
#include "vmm/vmm.h"

enum { DATA_PORT = 0x60, STATUS_PORT = 0x64 };
enum { ST_OUTPUT_FULL = 1, ST_SYSTEM = 4, ST_COMMAND = 8, ST_UNLOCKED = 0x10, ST_TIMEOUT = 0x40 };
enum { CTL_IRQ1 = 1, CTL_SYSTEM = 4, CTL_NO_KEYBOARD = 0x10, CTL_NO_AUX = 0x20, CTL_TRANSLATE = 0x40 };

struct i8042 {
  struct vmm *vmm;
  uint8_t control, output, flags; /* flags: status bits that belong to the waiting byte */
  uint8_t command;                /* the command whose parameter is awaited, 0: none */
  bool full, line;
};

static void update_line(struct i8042 *k) {
  bool level = k->full && k->control & CTL_IRQ1;
  if (level != k->line) vmm_irq_set(k->vmm, 1, level);
  k->line = level;
}

static void answer(struct i8042 *k, uint8_t byte, uint8_t flags) {
  k->output = byte;
  k->flags = flags;
  k->full = true;
}

/* Commands, one row each: an answer at once, a change of the control byte, or a parameter that follows. */
static const struct command {
  uint8_t code, set, clear, reply;
  bool replies, takes_parameter;
} commands[] = {
    {.code = 0x60, .takes_parameter = true},        /* write control byte */
    {.code = 0xa7, .set = CTL_NO_AUX},              /* disable auxiliary port */
    {.code = 0xa8, .clear = CTL_NO_AUX},            /* enable it */
    {.code = 0xa9, .reply = 3, .replies = true},    /* test it: data line stuck, for there is none */
    {.code = 0xaa, .reply = 0x55, .replies = true}, /* self test passed */
    {.code = 0xab, .reply = 0, .replies = true},    /* keyboard port works */
    {.code = 0xad, .set = CTL_NO_KEYBOARD},
    {.code = 0xae, .clear = CTL_NO_KEYBOARD},
    {.code = 0xc0, .reply = 0x80, .replies = true}, /* input port: keyboard not locked */
    {.code = 0xd0, .reply = 0x03, .replies = true}, /* output port: reset inactive, A20 open */
    {.code = 0xd1, .takes_parameter = true},        /* write output port */
    {.code = 0xd2, .takes_parameter = true},        /* keyboard loop-back */
    {.code = 0xd3, .takes_parameter = true},        /* auxiliary loop-back */
    {.code = 0xd4, .takes_parameter = true},        /* to the auxiliary device */
};

static void run_command(struct i8042 *k, uint8_t code) {
  k->command = 0;
  if (code == 0x20) answer(k, k->control, 0);
  if ((code & 0xf0) == 0xf0 && !(code & 1)) { /* pulse output bits that are 0; bit 0 is the reset line */
    vmm_end(k->vmm, VMM_END_RESET, "the guest asked for a reset (keyboard controller)");
    return;
  }
  for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
    const struct command *c = &commands[i];
    if (c->code != code) continue;
    k->control = (uint8_t)((k->control | c->set) & ~c->clear);
    if (c->replies) answer(k, c->reply, 0);
    if (c->takes_parameter) k->command = code;
  }
}

/* A byte for the keyboard or mouse meets silence: the controller reports a time-out (status bit 6, data 0xfe). */
static void take_data(struct i8042 *k, uint8_t byte) {
  uint8_t command = k->command;
  k->command = 0;
  switch (command) {
  case 0x60:
    k->control = byte;
    break;
  case 0xd1:
    if (!(byte & 1)) vmm_end(k->vmm, VMM_END_RESET, "the guest asked for a reset (keyboard controller)");
    break;
  case 0xd2:
    answer(k, byte, 0);
    break;
  default:
    answer(k, 0xfe, ST_TIMEOUT);
    break;
  }
}

static void i8042_read(void *dev, uint64_t addr, void *data, unsigned len) {
  struct i8042 *k = dev;
  memset(data, 0, len);
  *(uint8_t *)data = k->output;
  k->full = false;
  k->flags = 0;
  update_line(k);
}

static void i8042_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  take_data(dev, *(const uint8_t *)data);
  update_line(dev);
}

static void status_read(void *dev, uint64_t addr, void *data, unsigned len) {
  struct i8042 *k = dev;
  memset(data, 0, len);
  *(uint8_t *)data = (uint8_t)(ST_UNLOCKED | (k->control & CTL_SYSTEM) | (k->command ? ST_COMMAND : 0) |
                               (k->full ? ST_OUTPUT_FULL | k->flags : 0));
}

static void status_write(void *dev, uint64_t addr, const void *data, unsigned len) {
  run_command(dev, *(const uint8_t *)data);
  update_line(dev);
}

static void i8042_reset(void *dev) {
  struct i8042 *k = dev;
  k->full = false;
  update_line(k);
  k->control = CTL_SYSTEM | CTL_TRANSLATE | CTL_NO_AUX;
  k->command = k->flags = 0;
}

int i8042_create(struct vmm *vmm) {
  static const struct vmm_range_ops data_ops = {i8042_read, i8042_write}, status_ops = {status_read, status_write};
  struct i8042 *k = calloc(1, sizeof(*k));
  if (!k) return -ENOMEM;
  k->vmm = vmm;
  i8042_reset(k);
  int r = vmm_on_destroy(vmm, free, k);
  if (r) {
    free(k);
    return r;
  }
  r = vmm_on_reset(vmm, i8042_reset, k);
  if (r == 0) r = vmm_pio_add(vmm, DATA_PORT, 1, &data_ops, k);
  return r ? r : vmm_pio_add(vmm, STATUS_PORT, 1, &status_ops, k);
}
