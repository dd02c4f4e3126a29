import { existsSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { envName, flagName, readConfig } from '../../services/lib/process/config.ts';
import { ServingError } from '../../services/lib/process/errors.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { loadConfig, SETTINGS } from '../../services/settings.ts';
import { documented } from '../support/operations.ts';

type Setting = keyof typeof SETTINGS;
const all = Object.keys(SETTINGS) as Setting[];

/** The table of these settings alone. */
const only = <K extends Setting>(...names: readonly K[]) =>
  Object.fromEntries(names.map((name) => [name, SETTINGS[name]])) as { [P in K]: (typeof SETTINGS)[P] };

/** The message of the config_invalid error that `load` throws. */
function problems(load: () => unknown): string {
  try {
    load();
  } catch (error) {
    expect(error).toBeInstanceOf(ServingError);
    expect(error).toMatchObject({ code: 'config_invalid' });
    return (error as ServingError).message;
  }
  throw new Error('no problem was found');
}

describe('the settings table', () => {
  it('every setting is documented in OPERATIONS.md, and nothing else is', () => {
    expect(documented('settings')).toEqual(all.map(flagName));
  });

  it.each(all)('the setting %s has a meaning, and its default is valid when given', (setting) => {
    const schema = SETTINGS[setting];
    expect(schema.description).toMatch(/^\S.*[^.]$/);
    const byDefault = schema.safeParse(undefined);
    if (byDefault.success) expect(schema.parse(byDefault.data)).toEqual(byDefault.data);
  });

  it('flags and variables are named after their setting', () => {
    expect(flagName('bodyLimitBytes')).toBe('--body-limit-bytes');
    expect(envName('bodyLimitBytes')).toBe('LLAVACODE_BODY_LIMIT_BYTES');
    expect(new Set(all.map(envName)).size).toBe(all.length);
  });
});

describe('loadConfig', () => {
  it('flags win over variables, and variables over defaults', () => {
    const config = loadConfig(
      only('host', 'port', 'slots'),
      { port: 9000 },
      { LLAVACODE_PORT: '9001', LLAVACODE_SLOTS: '7' },
    );
    expect(config).toEqual({ host: '127.0.0.1', port: 9000, slots: 7 });
  });

  it('flags are read as text or as values', () => {
    expect(loadConfig(only('port', 'spin'), { port: '9000', spin: 'true' }, {})).toEqual({ port: 9000, spin: true });
    expect(loadConfig(only('port', 'spin'), { port: 9000, spin: true }, {})).toEqual({ port: 9000, spin: true });
  });

  it('an empty variable counts as not set', () => {
    const empty = { LLAVACODE_PORT: '', LLAVACODE_MODEL: '' };
    expect(loadConfig(only('port'), {}, empty)).toEqual({ port: 8000 });
    expect(problems(() => loadConfig(only('model'), {}, empty))).toContain('--model (LLAVACODE_MODEL): is required');
  });

  it('a configuration has only the settings that were asked for, and is frozen', () => {
    const config = loadConfig(only('prefillWorkers'), { prefillWorkers: 'a:1, b:2' }, { LLAVACODE_PORT: '1' });
    expect(config).toEqual({ prefillWorkers: ['a:1', 'b:2'] });
    expect(Object.isFrozen(config)).toBe(true);
    expect(Object.isFrozen(config.prefillWorkers)).toBe(true);
  });

  it.each([
    ['a:1,dns:prefill.svc:9000', ['a:1', 'dns:prefill.svc:9000']],
    ['redis+sentinel://s1:1,s2:2/master', ['redis+sentinel://s1:1,s2:2/master']],
  ])('workers may be named as %s', (given, items) => {
    expect(loadConfig(only('decodeWorkers'), { decodeWorkers: given }, {}).decodeWorkers).toEqual(items);
  });

  it.each(['dns:prefill', 'a:1,redis', 'http://a:1', ''])('workers may not be named as %j', (given) => {
    expect(problems(() => loadConfig(only('decodeWorkers'), { decodeWorkers: given }, {}))).toContain(
      '--decode-workers',
    );
  });

  it('all problems of a configuration are listed at once, by flag and variable, with the value', () => {
    const env = { LLAVACODE_PORT: '99999', LLAVACODE_SLOTS: 'many', LLAVACODE_SLOT: '1', PATH: '/bin', LLAVACODE: '1' };
    expect(
      problems(() => loadConfig(only('port', 'slots', 'model', 'provider'), { provider: 'tpu' }, env)).split('\n'),
    ).toEqual([
      'invalid configuration:',
      '  LLAVACODE_SLOT is not a setting; did you mean LLAVACODE_SLOTS?',
      '  --port (LLAVACODE_PORT) = "99999": must be a whole number from 0 to 65535',
      '  --slots (LLAVACODE_SLOTS) = "many": must be a whole number from 1 to 4096',
      '  --model (LLAVACODE_MODEL): is required',
      expect.stringMatching(/^ {2}--provider \(LLAVACODE_PROVIDER\) = "tpu": .*"auto"\|"cpu"\|"webgpu"\|"cuda"/),
    ]);
  });

  it('the service links that Kubernetes adds are skipped, and the configuration says which', () => {
    const links = {
      LLAVACODE_SERVICE_HOST: '10.96.0.12',
      LLAVACODE_SERVICE_PORT: '8000',
      LLAVACODE_SERVICE_PORT_HTTP: '8000',
      LLAVACODE_PORT: 'tcp://10.96.0.12:8000',
      LLAVACODE_PORT_8000_TCP: 'tcp://10.96.0.12:8000',
      LLAVACODE_PORT_8000_TCP_PROTO: 'tcp',
      LLAVACODE_PORT_8000_TCP_PORT: '8000',
      LLAVACODE_PORT_8000_TCP_ADDR: '10.96.0.12',
      LLAVACODE_GATEWAY_SERVICE_HOST: '10.96.0.13',
      LLAVACODE_GATEWAY_PORT: 'tcp://10.96.0.13:8000',
      LLAVACODE_PREFILL_PORT_9000_UDP_PORT: '9000',
      LLAVACODE_NAME: '/web/llavacode',
      LLAVACODE_ENV_NODE_VERSION: '22',
    };
    const skipped: string[] = [];
    const sources = { env: { ...links, LLAVACODE_SLOTS: '2' }, known: SETTINGS };
    const config = readConfig(only('port', 'slots'), { ...sources, onSkipped: (names) => skipped.push(...names) });
    expect(config).toEqual({ port: 8000, slots: 2 });
    expect(skipped).toEqual(Object.keys(links));
    // A setting that only looks like a link is a setting.
    expect(loadConfig(only('servedName'), {}, { LLAVACODE_SERVED_NAME: '/models/x' })).toEqual({
      servedName: '/models/x',
    });
    // A port that is none of theirs is still a mistake.
    expect(problems(() => loadConfig(only('port'), {}, { LLAVACODE_PORT: 'http://x:1' }))).toContain('LLAVACODE_PORT');
    expect(problems(() => loadConfig(only('port'), {}, { LLAVACODE_METRIC_PORT: '1' }))).toContain('did you mean');
  });

  it('settings of other processes are accepted in the environment', () => {
    expect(loadConfig(only('port'), {}, { LLAVACODE_SLOTS: 'not read here' })).toEqual({ port: 8000 });
  });

  it.each([' ', '1.5', '1e3', '0x10', '-1', '+1', 'NaN', 'Infinity', '', true, 1.5, -1, 65536])(
    '%j is not a port',
    (port) => {
      expect(problems(() => loadConfig(only('port'), { port }, {}))).toContain('from 0 to 65535');
    },
  );

  it.each(['', 'host', ':1', 'host:', 'host:0', 'host:65536', 'a:1,', 'a:1;b:2', '::1:8000', 'a:1 b:2'])(
    '%j is not a list of addresses',
    (decodeWorkers) => {
      expect(problems(() => loadConfig(only('decodeWorkers'), { decodeWorkers }, {}))).toContain('must be host:port');
    },
  );

  it('an address that nobody could reach is refused, and so is a stride that loses lines', () => {
    const wanted = ['advertise', 'chunkLines', 'chunkStride'] as const;
    const message = problems(() =>
      loadConfig(only(...wanted), { advertise: 'nonsense', chunkLines: 10, chunkStride: 20 }, {}),
    );
    expect(message).toContain('--advertise (LLAVACODE_ADVERTISE) = "nonsense": must be host:port');
    expect(message).toContain('--chunk-stride = 20');
    expect(loadConfig(only(...wanted), { advertise: 'node:1', chunkStride: 10 }, {}).advertise).toBe('node:1');
  });

  it('IPv6 addresses are taken in brackets', () => {
    const config = loadConfig(only('decodeWorkers'), { decodeWorkers: '[::1]:8001,node-1.local:65535' }, {});
    expect(config.decodeWorkers).toEqual(['[::1]:8001', 'node-1.local:65535']);
  });

  it.each([
    'http://app:secret@db:6379',
    'redis+sentinal://db:6379/main?sentinel_password=secret',
    'redis:/app:secret@db:6379',
    'redsi://app:a/secret,b@db:6379?db=secret',
  ])('an error never shows the password of a URL, however it is misspelt: %s', (store) => {
    const message = problems(() => loadConfig(only('store'), { store }, {}));
    expect(message).toContain('db:6379');
    expect(message).not.toContain('secret');
  });

  it('times that would overflow a timer are refused', () => {
    const times = all.filter((setting) => setting.endsWith('Ms'));
    expect(times.length).toBeGreaterThan(3);
    for (const time of times) {
      expect(loadConfig(only(time), { [time]: 2 ** 31 - 1 }, {})).toEqual({ [time]: 2 ** 31 - 1 });
      expect(problems(() => loadConfig(only(time), { [time]: 2 ** 31 }, {}))).toContain(flagName(time));
    }
  });

  it('any text is read either into a valid frozen value or into a problem that names the setting', () => {
    const text = fc.oneof(
      fc.string(),
      fc.integer().map(String),
      fc.constantFrom('true', 'off', 'lmdb:x', 'a:1,b:2', 'cpu'),
    );
    fc.assert(
      fc.property(fc.constantFrom(...all), text, (setting, value) => {
        const load = () => loadConfig(only(setting), {}, { [envName(setting)]: value });
        let config: ReturnType<typeof load>;
        try {
          config = load();
        } catch (error) {
          expect(error).toMatchObject({ code: 'config_invalid', message: expect.stringContaining(envName(setting)) });
          return;
        }
        expect(Object.isFrozen(config)).toBe(true);
        expect(SETTINGS[setting].parse(value === '' ? undefined : value)).toEqual(config[setting]);
      }),
    );
  });
});

it('PACKAGE_ROOT is the folder of package.json and protos/', () => {
  expect(existsSync(join(PACKAGE_ROOT, 'package.json'))).toBe(true);
  expect(existsSync(join(PACKAGE_ROOT, 'protos/llavacode/v1/kv.proto'))).toBe(true);
});
