# What fish completes after charcount-client, made by tools/fill_share.py from its options: not to be edited.
complete -c charcount-client -f
complete -c charcount-client -s h -l help -d 'show this help message and exit'
complete -c charcount-client -l version -d 'show program\'s version number and exit'
complete -c charcount-client -l host -x -a '(__fish_print_hostnames)' -d 'the server\'s name or address'
complete -c charcount-client -s p -l port -x -d 'the server\'s port'
complete -c charcount-client -l connect -x -d 'instead of host and port: HOST:PORT, [IPV6]:PORT, unix:PATH or unix:@NAME, with tls: in front for TLS'
complete -c charcount-client -l timeout -x -d 'longest wait for the connection (all addresses of a name together), and for each whole answer'
complete -c charcount-client -l classic -d 'the lab exercise\'s exchange: without line ends'
complete -c charcount-client -l ca -r -F -d 'trust these authorities (PEM), and not the system\'s'
complete -c charcount-client -l cert -r -F -d 'show this certificate to a server that wants one'
complete -c charcount-client -l key -r -F -d 'its key'
complete -c charcount-client -l server-name -x -d 'the server\'s certificate must be for this name'
complete -c charcount-client -l insecure -d 'trust any server, and whoever else is on the way'
