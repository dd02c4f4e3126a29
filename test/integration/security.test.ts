/** Real processes behind keys, TLS and mutual TLS; and what their logs say of what went through them: nothing. */
import { createHash } from 'node:crypto';
import { readdir, readFile, writeFile } from 'node:fs/promises';
import { request } from 'node:https';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { connectPrefill } from '../../services/lib/rpc/contract.ts';
import { loadRpcSecurity, SERVICE_NAME } from '../../services/lib/rpc/credentials.ts';
import { type Authority, makeAuthority } from '../support/certificates.ts';
import { startTestSystem, type TestSystem, TINY_CODER } from '../support/system.ts';

/** Stands wherever a client can put text of its own; and nowhere else in the world. */
const MARK = 'qzmarkerzq';
const KEY = 'k-qzsecretzq-0123456789abcdef';

let [authority, system]: [Authority, TestSystem] = [] as never;
let ca: Buffer;
let auditLog: string;
let rpc: Parameters<typeof loadRpcSecurity>[0];

beforeAll(async () => {
  authority = await makeAuthority();
  ca = await readFile(authority.ca);
  const { cert, key } = await authority.issue(SERVICE_NAME);
  const http = await authority.issue('localhost');
  rpc = { rpcCert: cert, rpcKey: key, rpcCa: authority.ca, rpcSecretFile: '' };
  const apiKeysFile = join(authority.ca, '..', 'keys.json');
  auditLog = join(authority.ca, '..', 'audit.log');
  const hash = createHash('sha256').update(KEY).digest('hex');
  await writeFile(apiKeysFile, JSON.stringify([{ key_sha256: hash, tenant: 'acme', repos: ['*'] }]));
  // Beyond loopback: what these guards are for.
  const workers = { ...rpc, host: '0.0.0.0', advertise: '', logLevel: 'trace' };
  const gateway = {
    ...rpc,
    host: '0.0.0.0',
    apiKeysFile,
    tlsCert: http.cert,
    tlsKey: http.key,
    auditLog,
    logLevel: 'trace',
  };
  system = await startTestSystem(TINY_CODER, workers, { gateway });
});
afterAll(async () => {
  await system?.close();
  await authority?.remove();
});

async function ask(path: string, body: object | string, headers: object = { authorization: `Bearer ${KEY}` }) {
  const port = new URL(system.url).port;
  return new Promise<{ status: number; text: string }>((resolve, reject) => {
    const call = request({
      ca,
      port,
      path,
      method: 'POST',
      headers: { 'content-type': 'application/json', ...headers },
    });
    call.on('error', reject);
    call.on('response', async (answer) => resolve({ status: answer.statusCode ?? 0, text: await text(answer) }));
    call.end(typeof body === 'string' ? body : JSON.stringify(body));
  });
}

async function logs(): Promise<string> {
  const dir = join(system.dir, 'logs');
  const files = await readdir(dir);
  return (await Promise.all(files.map((name) => readFile(join(dir, name), 'utf8')))).join('\n');
}

describe('a system with keys, TLS and mutual TLS', () => {
  test('a system with keys and TLS completes, whole and streamed, for those who have a key only', async () => {
    const body = { prompt: `def ${MARK}(a):\n    return `, suffix: `\n# ${MARK}`, max_tokens: 8, temperature: 0 };
    const whole = await ask('/v1/completions', body);
    expect([whole.status, JSON.parse(whole.text).choices[0].finish_reason]).toEqual([200, expect.any(String)]);
    const streamed = await ask('/v1/completions', { ...body, stream: true });
    expect(streamed.text.trimEnd()).toMatch(/data: \[DONE\]$/);
    expect((await ask('/v1/completions', body, {})).status).toBe(401);
    expect((await ask('/v1/completions', body, { authorization: `Bearer ${KEY}x` })).status).toBe(401);
  });

  test('workers with mutual TLS answer members of the system only', async () => {
    const worker = system.processes.find(({ name }) => name.startsWith('prefill'))!;
    const address = worker.address.replace('0.0.0.0', '127.0.0.1');
    const describe = async (security?: Awaited<ReturnType<typeof loadRpcSecurity>>) => {
      const client = connectPrefill(address, security);
      try {
        return (await client.describe(AbortSignal.timeout(10_000))).role;
      } finally {
        client.close();
      }
    };
    expect(await describe(await loadRpcSecurity(rpc))).toBe('prefill');
    await expect(describe()).rejects.toMatchObject({ code: 'worker_lost' });
  });
});

describe('the logs of all services, at their most talkative', () => {
  test('the logs of all services, at their most talkative, hold no prompt, no key and nothing else that a client said', async () => {
    const [prompt, max_tokens] = [MARK, 4];
    const bodies: (object | string)[] = [
      { prompt, max_tokens, stop: [MARK], user: MARK, session: MARK, cache_salt: MARK, request_id: MARK, echo: true },
      { prompt, max_tokens, n: 2, best_of: 3, logprobs: 5 },
      { prompt, max_tokens, rag: { repo: 'shop', path: `${MARK}.py` } },
      { prompt: MARK.repeat(5_000), max_tokens },
      { prompt, suffix: { [MARK]: MARK }, [MARK]: 1, logit_bias: { [MARK]: 1 } },
      { prompt, model: MARK },
      `{"prompt": "${MARK}`,
      `{"prompt": "${MARK}", "max_tokens": ${MARK}}`,
      [MARK],
    ];
    for (const body of bodies) await ask('/v1/completions', body);
    await ask(`/v1/${MARK}?${MARK}=1`, {});
    await ask('/v1/completions', { prompt }, { authorization: `Basic ${MARK}`, 'x-request-id': `${MARK} x` });
    await ask('/v1/completions', { prompt }, { authorization: `Bearer ${MARK}`, 'content-type': MARK });
    const completions = async () => (await logs()).match(/"msg":"completion"/g)?.length ?? 0;
    await expect.poll(completions).toBeGreaterThanOrEqual(bodies.length);
    const audited = await readFile(auditLog, 'utf8');
    expect(audited).toContain('"action":"repo.read","outcome":"repo_not_found"');
    const all = `${await logs()}\n${audited}`;
    expect(all.split('\n').filter((line) => line.includes(MARK))).toEqual([]);
    expect(all.split('\n').filter((line) => line.includes('qzsecretzq'))).toEqual([]);
  });
});
