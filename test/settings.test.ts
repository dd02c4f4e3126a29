/** The configuration file: the same names as flags, and a clear word where a name does not exist. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { GATEWAY_SETTINGS } from '../services/gateway/settings.ts';
import { loadConfig, readConfigFile } from '../services/settings.ts';
import { loadUpConfig } from '../services/up.ts';

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'llavacode-config-'));
});
afterAll(() => rm(dir, { recursive: true, force: true }));

async function fileOf(text: string): Promise<string> {
  const path = join(dir, 'llavacode.yaml');
  await writeFile(path, text);
  return path;
}

const NEEDED = { model: 'm', prefillWorkers: 'a:1', decodeWorkers: 'b:2' };

test('a file sets what neither a flag nor a variable sets', async () => {
  const file = await readConfigFile(
    await fileOf('max-inflight: 7\nport: 9001\nhost: 0.0.0.0\ninsecure-listen: true\n'),
  );
  const config = loadConfig(GATEWAY_SETTINGS, { ...NEEDED, port: '9003' }, { LLAVACODE_HOST: '::1' }, file);
  expect(config).toMatchObject({ maxInflight: 7, port: 9003, host: '::1', insecureListen: true });
});

test('a list of workers may be a YAML list', async () => {
  const file = await readConfigFile(await fileOf('prefill-workers: [a:1, "dns:b:2"]\ndecode-workers: c:3\nmodel: m\n'));
  const { prefillWorkers, decodeWorkers } = loadConfig(GATEWAY_SETTINGS, {}, {}, file);
  expect([prefillWorkers, decodeWorkers]).toEqual([['a:1', 'dns:b:2'], ['c:3']]);
});

test('one file serves a whole system: settings of other services are left alone', async () => {
  const file = await readConfigFile(await fileOf('slots: 8\nmode: colocated\nprefill: 2\nchunk-lines: 20\n'));
  expect(loadConfig(GATEWAY_SETTINGS, NEEDED, {}, file)).not.toHaveProperty('slots');
  expect(loadUpConfig({}, file)).toMatchObject({ slots: 8, mode: 'colocated', prefill: 2, chunkLines: 20 });
});

test('a key that is not a setting is refused with the nearest name', async () => {
  const path = await fileOf('max-inflght: 7\nslotz: 2\nmaxInflight: 1\nxyzzy: 1\n');
  await expect(readConfigFile(path)).rejects.toMatchObject({
    code: 'config_invalid',
    message: [
      `--config ${path}:`,
      'max-inflght is not a setting; did you mean max-inflight?',
      'slotz is not a setting; did you mean slots?',
      'maxInflight is not a setting; did you mean max-inflight?',
      'xyzzy is not a setting',
    ].join('\n  '),
  });
});

test('a value of the file is checked like that of a flag, and named', async () => {
  const file = await readConfigFile(await fileOf('port: 70000\n'));
  expect(() => loadConfig(GATEWAY_SETTINGS, NEEDED, {}, file)).toThrow(
    'port (in the file of --config) = 70000: must be a whole',
  );
});

test.each([
  ['- 1\n- 2\n', 'must be a YAML mapping'],
  ['a: [', ''],
])('a file that is not a mapping is refused: %j', async (text, why) => {
  const path = await fileOf(text);
  await expect(readConfigFile(path)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining(why),
  });
});

test('a file that is not there is named', async () => {
  const path = join(dir, 'none.yaml');
  await expect(readConfigFile(path)).rejects.toMatchObject({
    code: 'config_invalid',
    message: expect.stringContaining(`--config ${path}: it does not exist (ENOENT)`),
  });
});

test('an empty file and a key without a value set nothing', async () => {
  expect(await readConfigFile(await fileOf(''))).toEqual({});
  expect(await readConfigFile(await fileOf('port:\n'))).toEqual({});
  expect(await readConfigFile('')).toEqual({});
});

test('the workers of up step back behind its gateway, unless somebody says otherwise', () => {
  expect(loadUpConfig({}).nice).toBe(5);
  expect(loadUpConfig({ nice: '0' }).nice).toBe(0);
});
