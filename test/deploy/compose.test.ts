/**
 * docker-compose.yml against the settings: a flag or a service that does not exist shows only when somebody starts it.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { flagName } from '../../services/lib/process/config.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadConfig, SETTINGS } from '../../services/settings.ts';

type Setting = keyof typeof SETTINGS;
const flags = new Map(Object.keys(SETTINGS).map((setting) => [flagName(setting), setting as Setting]));

/** The command of each service of ours that is a process, by its name: a list in brackets or a line each. */
async function commands() {
  const text = await readFile(join(PACKAGE_ROOT, 'docker-compose.yml'), 'utf8');
  const services = text.slice(text.indexOf('\nservices:'), text.indexOf('\nvolumes:')).split(/\n {2}(?=\w+:\n)/);
  const found = services.map((service) => {
    const command = /^ {4}command:(.*(?:\n {6}- .*)*)/m.exec(service)?.[1] ?? '';
    const words = [...command.matchAll(/"([^"]*)"|- (\S+)/g)].map(([, quoted, plain]) => quoted ?? (plain as string));
    return [service.slice(0, service.indexOf(':')), words.flatMap((word) => word.split('='))] as const;
  });
  return new Map(found);
}

test('names settings that there are, with values that they take, and services that there are', async () => {
  const all = await commands();
  expect([...all.keys()]).toEqual(expect.arrayContaining(['prefill', 'decode', 'indexer', 'gateway']));
  for (const name of ['prefill', 'decode', 'indexer', 'gateway']) {
    const [command, ...rest] = all.get(name) as string[];
    expect(command).toBe(name);
    const given: Record<string, string> = {};
    for (let i = 0; i < rest.length; i += 2) {
      const setting = flags.get(rest[i] as string);
      expect(setting, rest[i]).toBeDefined();
      given[setting as Setting] = rest[i + 1] as string;
    }
    const table = Object.fromEntries((Object.keys(given) as Setting[]).map((setting) => [setting, SETTINGS[setting]]));
    expect(loadConfig(table, given, {})).toBeDefined();
    for (const value of Object.values(given)) {
      const host = /^(?:dns:)?([a-z]+):\d+$/.exec(value)?.[1];
      if (host) expect(all.has(host), value).toBe(true);
    }
  }
  // A name that several processes may answer to is not a name for one of them.
  expect(all.get('prefill')).not.toContain('--advertise');
  expect(all.get('gateway')).toEqual(expect.arrayContaining(['--indexer', 'indexer:9000', 'dns:prefill:9000']));
});
