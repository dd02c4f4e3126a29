/** The devices that Vulkan lists, by name: the tests' software GPU is one. A shell gets it by `npm run vulkan`. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { beforeAll, expect, test } from 'vitest';
import { openDevice } from '../../services/lib/engine/device.ts';
import { vulkanDevices } from '../../services/lib/engine/vulkan.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { useVulkan } from '../support/vulkan.ts';

beforeAll(() => useVulkan(), 240_000);

test('Vulkan lists the software GPU as software, and WebGPU is named after it', async () => {
  const devices = vulkanDevices();
  expect(devices).toEqual([{ name: expect.stringMatching(/^llvmpipe /), software: true }]);
  const device = await openDevice({ provider: 'webgpu' });
  expect(device.name).toBe(`WebGPU on ${devices[0]!.name} (software)`);
  await device.dispose();
});

test('npm run vulkan refuses a device that it does not have, and names those that it has', async () => {
  const script = join(PACKAGE_ROOT, 'dist/test/support/vulkan-environment.js');
  await expect(promisify(execFile)(process.execPath, [script, 'broken'])).rejects.toMatchObject({
    code: 1,
    stdout: '', // which a shell would evaluate
    stderr: expect.stringMatching(/no device broken: use right, wrong, none/),
  });
});
