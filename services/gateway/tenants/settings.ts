/** The settings of who may use the gateway, and of the record of what they did. */
import { file } from '../../lib/process/setting-types.ts';

export const TENANT_SETTINGS = {
  apiKeysFile: file.describe(
    'JSON file of the API keys that requests need (see deploy/SECURITY.md); no key is needed when empty',
  ),
  auditLog: file.describe(
    'file of the audit log, or stdout: a JSON line for every use of a repository and every action ' +
      'that needs a key with access admin (see deploy/SECURITY.md); none when empty',
  ),
};
