"""The blocking client of bangerd: everything the API can do, over its Unix socket, without asyncio.

::

    from banger.api.schema import VmCreate
    from banger.client.sdk import connect

    with connect() as client:  # starts the daemon if none runs
        client.wait(client.create_vm(VmCreate(name="web")))
        print(client.vm("web").status.ip)
"""
