/**
 * The drill of a process of this machine that has no credentials: `llavacode up` with API keys starts services that
 * answer each other and nobody else.
 */
import { once } from 'node:events';
import { mkdtemp, readdir, readFile } from 'node:fs/promises';
import { connect } from 'node:http2';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { execaNode } from 'execa';
import { CLI } from '../system/cli.ts';
import { owner, writeKeys } from '../system/tenants.ts';
import type { Drill, Scene } from './scene.ts';

const START_TIMEOUT_MS = 120_000;
const CALL_TIMEOUT_MS = 3_000;

/** A call to each service whose message may be empty. */
const CALLS: Readonly<Record<string, string>> = {
  prefill: '/llavacode.v1.Prefill/Describe',
  decode: '/llavacode.v1.Decode/Describe',
  indexer: '/llavacode.v1.Indexer/Describe',
};

async function callInside({ fleet, bundle, mark }: Scene): Promise<string> {
  const data = await mkdtemp(join(fleet.logs, 'up-'));
  const keys = await writeKeys(data, [owner()]);
  const own = ['--store', `lmdb:${join(data, 'store')}`, '--port', '0', '--threads', '1', '--slots', '2'];
  const words = ['up', '--model', bundle, '--data', data, '--api-keys-file', keys, ...own];
  const up = execaNode(CLI, words, { reject: false, buffer: false, forceKillAfterDelay: 20_000 });
  try {
    const logs = join(data, 'logs');
    const addresses = await Promise.race([
      allReady(logs),
      up.then(({ exitCode }) => Promise.reject(new Error(`llavacode up ended with exit code ${exitCode}`))),
    ]);
    mark();
    const answered: string[] = [];
    for (const [role, address] of addresses) {
      if (await isAnswered(address, CALLS[role]!)) answered.push(role);
    }
    if (answered.length > 0) throw new Error(`a process without credentials was answered by ${answered.join(', ')}`);
    return `${addresses.size} services refused a process without credentials`;
  } finally {
    up.kill('SIGTERM');
    await up;
  }
}

/** The addresses of the services, by role, when all have written into their logs that they are ready. */
async function allReady(logs: string): Promise<ReadonlyMap<string, string>> {
  const deadlineMs = performance.now() + START_TIMEOUT_MS;
  while (performance.now() < deadlineMs) {
    const found = new Map<string, string>();
    for (const name of await readdir(logs).catch(() => [])) {
      const line = (await readFile(join(logs, name), 'utf8'))
        .split('\n')
        .find((each) => each.includes('"msg":"ready"'));
      if (line !== undefined) found.set(name.split('-')[0]!, (JSON.parse(line) as { address: string }).address);
    }
    // The gateway starts last.
    if (found.delete('gateway')) return found;
    await sleep(100);
  }
  throw new Error(`llavacode up was not ready within ${START_TIMEOUT_MS} ms`);
}

/** Calls a method of gRPC with an empty message over plain HTTP/2. @returns whether it succeeded. */
async function isAnswered(address: string, path: string): Promise<boolean> {
  const session = connect(`http://${address}`);
  session.on('error', () => {});
  try {
    const headers = { ':method': 'POST', ':path': path, 'content-type': 'application/grpc', te: 'trailers' };
    const call = session.request(headers);
    call.on('error', () => {});
    // The status comes with the trailers, or with the head where there is no body.
    let status: unknown;
    call.on('response', (head) => {
      status ??= head['grpc-status'];
    });
    call.on('trailers', (trailers) => {
      status = trailers['grpc-status'];
    });
    call.resume();
    call.end(Buffer.alloc(5)); // an empty message: not compressed, of length 0
    await once(call, 'close', { signal: AbortSignal.timeout(CALL_TIMEOUT_MS) }).catch(() => {});
    return String(status) === '0';
  } finally {
    session.destroy();
  }
}

export const LOCAL_DRILLS: readonly Drill[] = [{ name: 'a local process without credentials', disturb: callInside }];
