/**
 * The checks of `llavacode up` before it starts anything, some of which `llavacode index` makes too: a mistake is
 * reported at once, not after loading a model.
 */
import { constants } from 'node:fs';
import { access, open, readFile, rm, stat } from 'node:fs/promises';
import { createServer } from 'node:net';
import { basename, join, resolve } from 'node:path';
import { loadTls } from './gateway/http/tls.ts';
import { loadApiKeys } from './gateway/tenants/api-keys.ts';
import { ServingError } from './lib/process/errors.ts';
import { atPath, makeFolder } from './lib/process/os-errors.ts';
import { narrowedInWords, narrowWithin } from './lib/process/private-files.ts';
import { DEFAULT_TENANT } from './lib/rag/store/repo-key.ts';
import { isRedisUrl } from './lib/redis/url.ts';

export interface Places {
  readonly host: string;
  readonly port: number;
  readonly data: string;
  readonly store: string;
  readonly index: readonly string[];
  readonly apiKeysFile: string;
  readonly tlsCert: string;
  readonly tlsKey: string;
}

/**
 * Checks every path and address that the system will need, and keeps the data folder for this process.
 * @returns gives the data folder free again.
 * @throws ServingError path_unusable, address_in_use, address_unusable, store_unavailable, config_invalid; each names
 *   the setting, its value and the reason.
 */
export async function checkPlaces(places: Places): Promise<() => Promise<void>> {
  const { host, port, data, store, index } = places;
  for (const dir of index) await assertFolder(`--index ${dir}`, dir);
  const twice = index.find((dir, i) =>
    index.slice(0, i).some((other) => repositoryName(other) === repositoryName(dir)),
  );
  if (twice !== undefined) {
    const name = repositoryName(twice);
    throw new ServingError(
      'config_invalid',
      `--index ${twice}: another repository is called ${name} too; index one by llavacode index --name`,
    );
  }
  await Promise.all([tenantOfIndexes(places), loadTls(places)]);
  await assertFree(host, port);
  if (isRedisUrl(store)) await assertAnswers(store);
  const release = await atPath(`--data ${data}`, async () => {
    const narrowed = narrowedInWords(data, await narrowWithin(data, KEPT));
    if (narrowed) process.stderr.write(`${narrowed}\n`);
    await makeFolder(join(data, 'logs'));
    return keepFolder(data);
  });
  try {
    if (!isRedisUrl(store)) await atPath(`--store ${store}`, () => makeWritable(store.replace(/^lmdb:/, '')));
  } catch (error) {
    await release();
    throw error;
  }
  return release;
}

/** What a system keeps in its data folder. */
const KEPT = ['bundles', 'logs', 'store', 'up.pid'];

/**
 * The tenant that owns the repositories that are indexed at start: the only one of the keys, or the default one.
 * @throws ServingError config_invalid where keys belong to several tenants and none of them is the default one.
 */
export async function tenantOfIndexes({ apiKeysFile, index }: Pick<Places, 'apiKeysFile' | 'index'>): Promise<string> {
  const { tenants } = await loadApiKeys(apiKeysFile);
  const [only = DEFAULT_TENANT] = tenants;
  if (tenants.length <= 1) return only;
  if (index.length === 0 || tenants.includes(DEFAULT_TENANT)) return DEFAULT_TENANT;
  throw new ServingError(
    'config_invalid',
    `--index ${index[0]}: the keys of ${apiKeysFile} belong to ${tenants.length} tenants, and it is not known whose it ` +
      'is. Leave it out, and index it when the system runs: llavacode index --path DIR --api-key KEY',
  );
}

/** The name of a repository that is indexed at start: that of its folder, in letters that a name may have. */
export const repositoryName = (dir: string) =>
  basename(resolve(dir))
    .replace(/[^\w.-]/g, '-')
    .replace(/^[.-]+/, '') || 'repository';

/** @throws ServingError path_unusable unless `dir` is a folder that can be read. */
export async function assertFolder(named: string, dir: string): Promise<void> {
  const stats = await atPath(named, () => stat(dir));
  if (!stats.isDirectory()) throw new ServingError('path_unusable', `${named}: it is not a folder`);
  await atPath(named, () => access(dir, constants.R_OK | constants.X_OK));
}

async function makeWritable(dir: string): Promise<void> {
  await makeFolder(dir);
  await access(dir, constants.W_OK | constants.X_OK);
}

/** @throws ServingError address_in_use, address_unusable */
async function assertFree(host: string, port: number): Promise<void> {
  const server = createServer();
  await atPath(
    `--host ${host} --port ${port}`,
    () =>
      new Promise<void>((resolve, reject) => {
        server.once('error', reject);
        server.listen({ port, host, exclusive: true }, resolve);
      }),
  );
  await new Promise((resolve) => server.close(resolve));
}

/** @throws ServingError store_unavailable */
async function assertAnswers(store: string): Promise<void> {
  const { RedisConnection } = await import('./lib/redis/connection.ts');
  const redis = new RedisConnection(store);
  try {
    await redis.run((client) => client.ping());
  } finally {
    redis.close();
  }
}

/**
 * Two systems on one folder would write each other's logs and store. The file names the process that has it; that of a
 * process that was killed is taken over.
 * @throws ServingError config_invalid
 */
async function keepFolder(data: string): Promise<() => Promise<void>> {
  const path = join(data, 'up.pid');
  for (;;) {
    try {
      const file = await open(path, 'wx');
      await file.writeFile(String(process.pid));
      await file.close();
      return () => rm(path, { force: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    }
    const holder = Number(await readFile(path, 'utf8').catch(() => ''));
    if (holder > 0 && (await isUp(holder))) {
      const message = `--data ${data}: another llavacode up (process ${holder}) works there; stop it, or name another folder`;
      throw new ServingError('config_invalid', message);
    }
    await rm(path, { force: true });
  }
}

/** Whether a process lives and is a `llavacode up`: its number may have been given to another program since. */
async function isUp(pid: number): Promise<boolean> {
  const words = await readFile(`/proc/${pid}/cmdline`, 'utf8').catch(() => undefined);
  if (words !== undefined) return words.split('\0').includes('up');
  try {
    process.kill(pid, 0); // a system without /proc
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}
