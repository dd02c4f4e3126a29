/** The remote URL of a checkout, as its own configuration has it. git itself is not run. */
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';

/** A section of git's configuration, and a URL within it. */
const SECTION = /^\s*\[\s*(?:remote\s+"((?:[^"\\]|\\.)*)")?/;
const URL_LINE = /^\s*url\s*=\s*(\S.*?)\s*$/i;

/**
 * The URL of `origin`, or of the first remote where there is no `origin`.
 * @param dir root of a checkout, or of a work tree of one.
 * @returns undefined for another folder, or a checkout without a remote.
 */
export async function gitRemote(dir: string): Promise<string | undefined> {
  const git = await gitFolder(dir);
  const config = git && (await textOf(join(git, 'config')));
  if (config === undefined) return undefined;
  const urls = new Map<string, string>();
  let remote: string | undefined;
  for (const line of config.split(/\r?\n/)) {
    const section = SECTION.exec(line);
    if (section) remote = section[1];
    const url = URL_LINE.exec(line)?.[1];
    if (remote !== undefined && url !== undefined && !urls.has(remote)) urls.set(remote, unquoted(url));
  }
  return urls.get('origin') ?? urls.values().next().value;
}

/** The folder that holds the configuration: `.git`, or what the file `.git` of a work tree or submodule points to. */
async function gitFolder(dir: string): Promise<string | undefined> {
  const own = join(dir, '.git');
  const pointer = await textOf(own);
  if (pointer === undefined) return own;
  const at = /^gitdir:\s*(.+?)\s*$/m.exec(pointer)?.[1];
  if (at === undefined) return undefined;
  const folder = resolve(dir, at);
  const common = await textOf(join(folder, 'commondir'));
  return common === undefined ? folder : resolve(folder, common.trim());
}

const unquoted = (value: string) => (/^".*"$/.test(value) ? value.slice(1, -1) : value);

/** undefined where it cannot be read, a folder among them. */
const textOf = (file: string) => readFile(file, 'utf8').catch(() => undefined);
