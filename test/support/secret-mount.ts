/** A folder of files as Kubernetes mounts a Secret: links through `..data`, which changes all files in one step. */
import { mkdir, mkdtemp, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

export interface SecretMount {
  path(name: string): string;
  /** Replaces all files at once. */
  swap(files: Readonly<Record<string, string | Buffer>>): Promise<void>;
  remove(): Promise<void>;
}

export async function mountSecret(files: Readonly<Record<string, string | Buffer>>): Promise<SecretMount> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-secret-'));
  let version = 0;
  const swap = async (contents: typeof files) => {
    const before = `..${version}`;
    const next = `..${++version}`;
    await mkdir(join(dir, next));
    for (const [name, content] of Object.entries(contents)) await writeFile(join(dir, next, name), content);
    await symlink(next, join(dir, '..data_tmp'));
    await rename(join(dir, '..data_tmp'), join(dir, '..data'));
    await rm(join(dir, before), { recursive: true, force: true });
  };
  await swap(files);
  for (const name of Object.keys(files)) await symlink(join('..data', name), join(dir, name));
  return { path: (name) => join(dir, name), swap, remove: () => rm(dir, { recursive: true, force: true }) };
}
