/* Config space of a function: bytes with masks of what the guest may write or clear, and what follows from a write.
 *
 * PCI Local Bus 3.0, chapter 6.
 */
#include "vmm/pci/pci_priv.h"

#include <linux/pci_regs.h>

static void init_field16(struct pci_dev *dev, unsigned offset, uint16_t value, uint16_t writable) {
  pci_set16(dev->config + offset, value);
  pci_set16(dev->writable + offset, writable);
}

void pci_dev_init(struct pci_dev *dev, const struct pci_dev_ops *ops, const struct pci_id *id) {
  dev->ops = ops;
  dev->next_cap = PCI_STD_HEADER_SIZEOF;
  init_field16(dev, PCI_VENDOR_ID, id->vendor, 0);
  init_field16(dev, PCI_DEVICE_ID, id->device, 0);
  init_field16(dev, PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor, 0);
  init_field16(dev, PCI_SUBSYSTEM_ID, id->subsystem, 0);
  pci_set32(dev->config + PCI_CLASS_REVISION, id->class_code << 8 | id->revision);
  init_field16(dev, PCI_COMMAND, 0, PCI_COMMAND_MASTER | PCI_COMMAND_PARITY | PCI_COMMAND_SERR | PCI_COMMAND_INTX_DISABLE);
  dev->writable[PCI_CACHE_LINE_SIZE] = 0xff;
  dev->writable[PCI_INTERRUPT_LINE] = 0xff;
  dev->config[PCI_INTERRUPT_PIN] = id->intx ? 1 : 0;
  pthread_mutex_init(&dev->msix.lock, NULL);
}

void pci_dev_fini(struct pci_dev *dev) {
  msix_free(dev);
  pthread_mutex_destroy(&dev->msix.lock);
}

unsigned pci_cap_add(struct pci_dev *dev, uint8_t id, unsigned len) {
  unsigned at = dev->next_cap;
  if (at + len > PCI_CONFIG_SIZE) return 0;
  dev->config[at + PCI_CAP_LIST_ID] = id;
  dev->config[dev->last_cap ? dev->last_cap + PCI_CAP_LIST_NEXT : PCI_CAPABILITY_LIST] = at;
  dev->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
  dev->last_cap = at;
  dev->next_cap = (at + len + 3) & ~3u;
  return at;
}

/* ---- what follows from a write ---- */

static void command_changed(struct pci_dev *dev) {
  pci_bars_update(dev->host);
  msix_control_changed(dev);
  pci_intx_update(dev);
}

static void bars_changed(struct pci_dev *dev) {
  pci_bars_update(dev->host);
}

static void msix_changed(struct pci_dev *dev) {
  msix_control_changed(dev);
  pci_intx_update(dev);
}

static bool overlaps(unsigned offset, unsigned len, unsigned start, unsigned size) {
  return offset < start + size && start < offset + len;
}

static void follow_write(struct pci_dev *dev, unsigned offset, unsigned len) {
  const struct {
    unsigned start, size;
    void (*changed)(struct pci_dev *dev);
  } rows[] = {
      {PCI_COMMAND, 2, command_changed},
      {PCI_BASE_ADDRESS_0, 4 * PCI_BARS, bars_changed},
      {dev->msix.cap + PCI_MSIX_FLAGS, dev->msix.count ? 2 : 0, msix_changed},
  };
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++)
    if (rows[i].size && overlaps(offset, len, rows[i].start, rows[i].size)) rows[i].changed(dev);
}

/* ---- accesses ---- */

void pci_dev_config_read(struct pci_dev *dev, unsigned offset, void *data, unsigned len) {
  pci_intx_refresh_status(dev);
  if (dev->ops->config_read) dev->ops->config_read(dev, offset, len);
  memcpy(data, dev->config + offset, len);
}

void pci_dev_config_write(struct pci_dev *dev, unsigned offset, const void *data, unsigned len) {
  const uint8_t *value = data;
  for (unsigned i = 0; i < len; i++) {
    uint8_t *byte = &dev->config[offset + i], writable = dev->writable[offset + i];
    *byte = (*byte & ~writable) | (value[i] & writable);
    *byte &= ~(value[i] & dev->clearable[offset + i]);
  }
  follow_write(dev, offset, len);
  if (dev->ops->config_write) dev->ops->config_write(dev, offset, len);
}

void pci_dev_config_reset(struct pci_dev *dev) {
  memcpy(dev->config, dev->initial, sizeof dev->config);
  msix_reset(dev);
  pci_intx_set(dev, false);
  pci_intx_update(dev);
  pci_bars_update(dev->host);
}

/* The function that a config access goes to; reads of absent ones give all ones, writes are lost. */
static struct pci_dev *config_target(struct pci_host *host, unsigned devfn, unsigned offset, unsigned len) {
  if ((devfn & 7) || devfn >> 3 >= PCI_SLOTS) return NULL;
  if (len == 0 || len > 4 || (offset & 3) + len > 4) return NULL;
  return host->slot[devfn >> 3];
}

uint32_t pci_config_read(struct pci_host *host, unsigned devfn, unsigned offset, unsigned len) {
  struct pci_dev *dev = config_target(host, devfn, offset, len);
  uint32_t value = 0;
  if (!dev) return UINT32_MAX;
  /* No extended capabilities: ECAM's upper part reads as zero (PCI Express 7.9.3). */
  if (offset + len <= PCI_CONFIG_SIZE) pci_dev_config_read(dev, offset, &value, len);
  return value;
}

void pci_config_write(struct pci_host *host, unsigned devfn, unsigned offset, uint32_t value, unsigned len) {
  struct pci_dev *dev = config_target(host, devfn, offset, len);
  if (dev && offset + len <= PCI_CONFIG_SIZE) pci_dev_config_write(dev, offset, &value, len);
}
