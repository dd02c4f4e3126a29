/** The devices that Vulkan lists, by name: the tests' software GPU is one. */
import { beforeAll, expect, test } from 'vitest';
import { openDevice } from '../../services/lib/engine/device.ts';
import { vulkanDevices } from '../../services/lib/engine/vulkan.ts';
import { useVulkan } from '../support/vulkan.ts';

beforeAll(() => useVulkan(), 240_000);

test('Vulkan lists the software GPU as software, and WebGPU is named after it', async () => {
  const devices = vulkanDevices();
  expect(devices).toEqual([{ name: expect.stringMatching(/^llvmpipe /), software: true }]);
  const device = await openDevice({ provider: 'webgpu' });
  expect(device.name).toBe(`WebGPU on ${devices[0]!.name} (software)`);
  await device.dispose();
});
