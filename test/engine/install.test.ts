/** `npm ci` downloads no libraries for CUDA, under npm 10 too. */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { afterEach, expect, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/config.ts';

afterEach(() => vi.unstubAllEnvs());

test('.npmrc tells the installer of onnxruntime-node to skip, by the name that it reads', async () => {
  const { parseInstallFlag } = createRequire(import.meta.url)('onnxruntime-node/script/install-utils.js');
  vi.stubEnv('npm_config_onnxruntime_node_install', undefined); // set when npm runs the tests
  expect(parseInstallFlag()).toBeUndefined();
  const settings = await readFile(join(PACKAGE_ROOT, '.npmrc'), 'utf8');
  for (const [, key, value] of settings.matchAll(/^([\w-]+)=(.*)$/gm)) {
    vi.stubEnv(`npm_config_${key!.replaceAll('-', '_')}`, value); // as npm does before a package's scripts
  }
  expect(parseInstallFlag()).toBe(false);
});
