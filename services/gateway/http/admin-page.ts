/**
 * The operator page as a browser gets it: files that were built with the package (page/), under a policy that lets them
 * load and send nothing but to this gateway. They are the same for everybody, and hold nothing of the system: all that
 * they show comes from `/admin/api`, for which the operator gives a key.
 */
import { readdir, readFile } from 'node:fs/promises';
import { extname, join } from 'node:path';
import type { FastifyInstance } from 'fastify';
import { ServingError } from '../../lib/process/errors.ts';
import { reasonOf } from '../../lib/process/os-errors.ts';
import { PACKAGE_ROOT } from '../../lib/process/package-root.ts';

interface PageFile {
  readonly type: string;
  readonly bytes: Buffer;
}

/** The files by name, such as `index.html` and `assets/main-BkX1.js`. */
export type PageFiles = ReadonlyMap<string, PageFile>;

const INDEX = 'index.html';
const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
};

/**
 * Scripts and styles are files of ours, and the page may talk to this gateway alone. No markup is made of strings, so
 * that text which came from outside can only ever be text.
 */
const POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "img-src 'self'",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ');

const HEADERS = {
  'content-security-policy': POLICY,
  'x-content-type-options': 'nosniff',
  'referrer-policy': 'no-referrer',
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-resource-policy': 'same-origin',
};

export const ADMIN_URL = '/admin';

/** Whether a route belongs to the page, which needs no key; the data behind it do. */
export const isPage = (url: string): boolean => [ADMIN_URL, `${ADMIN_URL}/`, `${ADMIN_URL}/assets/*`].includes(url);

/** Reads the built page: about 120 KB. @throws ServingError config_invalid where it was not built. */
export async function loadPage(dir = join(PACKAGE_ROOT, 'dist', 'page')): Promise<PageFiles> {
  try {
    const names = (await readdir(dir, { recursive: true })).map((name) => name.replaceAll('\\', '/'));
    const known = names.filter((name) => TYPES[extname(name)] !== undefined);
    const files = await Promise.all(
      known.map(async (name) => {
        const file: PageFile = { type: TYPES[extname(name)]!, bytes: await readFile(join(dir, name)) };
        return [name, file] as const;
      }),
    );
    const page = new Map(files);
    if (!page.has(INDEX)) throw new Error(`it has no ${INDEX}`);
    return page;
  } catch (cause) {
    const message = `--admin-page: the operator page is not in ${dir}: ${reasonOf(cause)} (npm run build makes it)`;
    throw new ServingError('config_invalid', message, { cause });
  }
}

/** The reason why there is nothing under {@link ADMIN_URL}. */
export const noPage = () => new ServingError('not_found', 'this gateway has no operator page (--admin-page)');

/** @param page undefined where the page is off: its URLs are not there then. */
export function addAdminPage(app: FastifyInstance, page: PageFiles | undefined): void {
  app.get(ADMIN_URL, async (_, reply) => {
    if (page === undefined) throw noPage();
    // Relative, so that a proxy may put the gateway under a path of its own.
    return reply.headers(HEADERS).redirect(`.${ADMIN_URL}/`, 302);
  });
  const send = (name: string, caching: string) => {
    if (page === undefined) throw noPage();
    const file = page.get(name);
    if (file === undefined) throw new ServingError('not_found', `the operator page has no ${name}`);
    return { ...file, headers: { ...HEADERS, 'cache-control': caching, 'content-type': file.type } };
  };
  app.get(`${ADMIN_URL}/`, async (_, reply) => {
    const { bytes, headers } = send(INDEX, 'no-cache');
    return reply.headers(headers).send(bytes);
  });
  app.get<{ Params: { '*': string } }>(`${ADMIN_URL}/assets/*`, async ({ params }, reply) => {
    // Their names change with their content.
    const { bytes, headers } = send(`assets/${params['*']}`, 'public, max-age=31536000, immutable');
    return reply.headers(headers).send(bytes);
  });
}
