/** A machine with the Vulkan loader and no driver. */
import { expect, test } from 'vitest';
import { openDevice } from '../../services/lib/engine/device.ts';
import { useVulkan } from '../support/vulkan.ts';

test('without a driver WebGPU is refused with the reason and the remedy', async () => {
  await useVulkan('none');
  await expect(openDevice({ provider: 'webgpu' })).rejects.toMatchObject({
    code: 'provider_unavailable',
    message: expect.stringMatching(/WebGPU cannot be used \(.*No supported adapters.*Vulkan driver.*--provider cpu/s),
  });
});
