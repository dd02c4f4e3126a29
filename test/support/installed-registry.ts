/**
 * An npm registry on this machine that serves what lies in node_modules: npm installs from it as from the public one,
 * and no network is needed. It knows the packages that package-lock.json names for production.
 */
import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

/** What npm reads of a package before it downloads it, as package-lock.json has it. */
interface Locked {
  readonly version: string;
  readonly dev?: boolean;
  readonly dependencies?: Readonly<Record<string, string>>;
  readonly optionalDependencies?: Readonly<Record<string, string>>;
  readonly peerDependencies?: Readonly<Record<string, string>>;
  readonly peerDependenciesMeta?: object;
  readonly bin?: object;
  readonly engines?: object;
  readonly os?: readonly string[];
  readonly cpu?: readonly string[];
  readonly libc?: readonly string[];
}

interface Lock {
  readonly packages: Readonly<Record<string, Locked>>;
}

export interface InstalledRegistry {
  readonly url: string;
  close(): void;
}

/** Where npm's lock says that a package lies: `node_modules/a`, or `node_modules/a/node_modules/b`. */
const MODULES = 'node_modules/';
const nameOf = (path: string) => path.slice(path.lastIndexOf(MODULES) + MODULES.length);

export async function startInstalledRegistry(): Promise<InstalledRegistry> {
  const { packages } = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package-lock.json'), 'utf8')) as Lock;
  const paths = Object.keys(packages).filter((path) => path.startsWith(MODULES) && !packages[path]!.dev);
  const server = createServer(({ url = '/' }, response) => {
    const asked = decodeURIComponent(url.slice(1));
    const path = asked.replace(/^tarballs\/(.*)\.tgz$/, '$1');
    if (path !== asked && paths.includes(path)) {
      sendTarball(path, response);
      return;
    }
    const found = paths.filter((each) => nameOf(each) === asked);
    response.statusCode = found.length === 0 ? 404 : 200;
    response.setHeader('content-type', 'application/json');
    response.end(JSON.stringify(found.length === 0 ? { error: 'not found' } : packument(asked, found)));
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const packument = (name: string, found: readonly string[]) => {
    const versions = found.map((path) => {
      const tarball = `${address}/tarballs/${encodeURIComponent(path)}.tgz`;
      return [packages[path]!.version, { ...packages[path], name, dist: { tarball } }] as const;
    });
    return { name, 'dist-tags': { latest: versions[0]![0] }, versions: Object.fromEntries(versions) };
  };
  const close = () => {
    server.closeAllConnections();
    server.close();
  };
  return { url: `${address}/`, close };
}

/** Libraries of other platforms would be copied for nothing: 220 MB. */
const OTHERS = ['darwin', 'win32', 'linux'].filter((platform) => platform !== process.platform);

/** A package as npm has it in a tarball, without the packages within it. */
function sendTarball(path: string, response: ServerResponse): void {
  const dir = join(PACKAGE_ROOT, path);
  if (!existsSync(dir)) {
    response.writeHead(404).end();
    return;
  }
  const left = ['./node_modules', ...OTHERS.map((platform) => `./bin/napi-v6/${platform}`)];
  const words = [...left.map((each) => `--exclude=${each}`), '--transform=s,^\\.,package,', '-C', dir, '.'];
  const tar = spawn('tar', ['-cf', '-', ...words], { stdio: ['ignore', 'pipe', 'inherit'] });
  tar.stdout.pipe(response);
}
